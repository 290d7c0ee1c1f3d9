"""A view as a video: all tokens and each policy side by side, with its counts below and the place in time."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vidsieve.media import write_video
from vidsieve.report.number_format import plain
from vidsieve.view.contents import Contents
from vidsieve.view.overlay import Overlays, painted
from vidsieve.view.sentences import unit_sentence
from vidsieve.view.shown_frames import blank, chosen_units

PANEL_PX, MOST_HIGH_PX, GAP_PX = 320, 480, 12
TITLE_PX, CAPTION_PX, BARS_PX = 26, 36, 44
ACROSS = 3
PAPER, INK, BAR, MARK = (255, 255, 255), (27, 31, 36), (0, 114, 178), (179, 71, 0)
LEAST_S, USUAL_S = 0.2, 0.5


def write_film(view: Contents, path: Path) -> Path:
    """Write the film at the pace of the source, but no frame shorter than a fifth of a second. Raises MediaError."""
    shown, draw = chosen_units(view.units), _Film(view)
    pictures = [torch.from_numpy(draw.picture(int(unit))).permute(2, 0, 1) for unit in shown]
    return write_video(path, torch.stack(pictures), 1 / _frame_seconds(view, len(shown)), crf=20)


def _frame_seconds(view: Contents, count: int) -> float:
    """How long each of `count` frames is shown."""
    times = view.times_s
    if times is None or count < 2 or not times[-1] > times[0]:
        return USUAL_S
    return max(LEAST_S, float(times[-1] - times[0]) / (count - 1))


class _Film:
    """Draws one picture a unit."""

    def __init__(self, view: Contents) -> None:
        self.view = view
        self.overlays = [Overlays(fates) for fates in view.fates]
        first = blank(view.fates[0].grid) if view.frames is None else view.frames[0]
        scale = min(PANEL_PX / first.shape[1], MOST_HIGH_PX / first.shape[0])
        self.size = (max(2, round(first.shape[1] * scale)), max(2, round(first.shape[0] * scale)))
        self.panels = len(view.fates) + (view.frames is not None)
        # one row as long as that is not wider than a usual screen
        self.across = self.panels if self.panels <= ACROSS + 1 else ACROSS
        self.rows = -(-self.panels // self.across)
        self.cell = (PANEL_PX + GAP_PX, self.size[1] + TITLE_PX + CAPTION_PX + BARS_PX + GAP_PX)

    def picture(self, unit: int) -> UInt8[np.ndarray, "height width 3"]:
        """The picture of one unit; its sides are even, as the usual encoders ask."""
        width, height = self.cell[0] * self.across + GAP_PX, self.cell[1] * self.rows + GAP_PX + TITLE_PX
        canvas = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
        pen = ImageDraw.Draw(canvas)
        pen.text((GAP_PX, 6), self._heading(unit), fill=INK, font=_font(15))
        frame = self._frame(unit)
        names: list[int | None] = [*([None] if self.view.frames is not None else []), *range(len(self.view.fates))]
        for place, policy in enumerate(names):
            row, column = divmod(place, self.across)
            corner = (GAP_PX + column * self.cell[0], GAP_PX + TITLE_PX + row * self.cell[1])
            self._panel(canvas, pen, corner, frame, policy, unit)
        return np.array(canvas)

    def _heading(self, unit: int) -> str:
        view = self.view
        when = "" if view.times_s is None else f", {view.times_s[unit]:.1f} s"
        return plain(f"{view.title + ': ' if view.title else ''}frame {unit + 1} of {view.units}{when}", 90)

    def _frame(self, unit: int) -> UInt8[np.ndarray, "height width 3"]:
        view = self.view
        given = blank(view.fates[0].grid) if view.frames is None else view.frames[unit]
        return np.asarray(Image.fromarray(given).resize(self.size, Image.Resampling.BICUBIC))

    def _panel(self, canvas: Any, pen: Any, corner: tuple[int, int], frame: Any, policy: int | None, unit: int) -> None:
        """One policy's frame, name, counts, and its bars along time; without a policy the frame alone."""
        x, y = corner
        name = "all tokens" if policy is None else self.view.fates[policy].policy
        pen.text((x, y), plain(name, 34), fill=INK, font=_font(15))
        shown = frame if policy is None else painted(frame, self.overlays[policy].of(unit))
        canvas.paste(Image.fromarray(shown), (x + (PANEL_PX - self.size[0]) // 2, y + TITLE_PX))
        if policy is None:
            return
        below = y + TITLE_PX + self.size[1] + 4
        for number, line in enumerate(_folded(unit_sentence(self.view.fates[policy], unit), 48)[:2]):
            pen.text((x, below + 15 * number), line, fill=INK, font=_font(12))
        self._bars(pen, (x, below + CAPTION_PX), policy, unit)

    def _bars(self, pen: Any, corner: tuple[int, int], policy: int, unit: int) -> None:
        """Tokens of each unit that the language model sees, the present one marked."""
        x, y = corner
        values = self.view.fates[policy].seen_per_unit
        most = max(1.0, *(float(fates.seen_per_unit.max()) for fates in self.view.fates))
        step, high = PANEL_PX / len(values), BARS_PX - 8
        for place, value in enumerate(values.tolist()):
            left, right = x + place * step, x + (place + 1) * step
            top = y + high - high * value / most
            pen.rectangle((left, top, max(left, right - 2), y + high), fill=MARK if place == unit else BAR)
            if place == unit:
                pen.rectangle((left, y + high + 2, max(left, right - 2), y + high + 5), fill=MARK)


def _folded(text: str, width: int) -> list[str]:
    from textwrap import wrap

    return wrap(text, width) or [""]


@cache
def _font(size: int) -> Any:
    """matplotlib's own font, which every installation has."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
