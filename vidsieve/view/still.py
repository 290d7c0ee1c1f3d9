"""A view as one PNG: a few frames in columns, a row for each policy, bars along time below."""

import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from vidsieve.report.number_format import plain
from vidsieve.view.contents import Contents
from vidsieve.view.overlay import Overlays, painted
from vidsieve.view.sentences import summary
from vidsieve.view.shown_frames import blank, chosen_units, fitted
from vidsieve.view.token_fates import Fate, Fates

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS = 8
CELL_IN, LABEL_IN, BAR_IN, HEAT_IN = 1.15, 1.15, 0.5, 0.17
MOST_WORDS = 12
DPI = 110
FRAME_PX = 160
BAR, INK, SOFT = "#0072b2", "#1b1f24", "#57606a"
_LOCK = threading.Lock()


def still_png(view: Contents) -> bytes:
    """Draw the picture; no global state of matplotlib is used."""
    buffer = io.BytesIO()
    with _LOCK:
        _Still(view).figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None}, facecolor="white")
    return _reduced(buffer.getvalue())


def _reduced(png: bytes) -> bytes:
    """The same with 256 colours: frames are small and noisy, and the file a third as large."""
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


class _Still:
    """Lays the rows out from the top: all tokens, then for each policy its frames, bars and strips."""

    def __init__(self, view: Contents) -> None:
        from matplotlib.figure import Figure

        self.view, self.shown = view, chosen_units(view.units, COLUMNS)
        self.aspect = self._frame(0).shape[0] / self._frame(0).shape[1]
        rows = [row for fates in view.fates for row in self._rows(fates)]
        heights = [0.35, *([self._tall] if view.frames is not None else []), *(height for _, height, _ in rows)]
        self.width = LABEL_IN + CELL_IN * len(self.shown)
        self.height = sum(heights) + 0.06 * len(heights) + 0.24
        self.figure: Figure = Figure(figsize=(self.width, self.height))
        self.at = self.height
        self._write_title()
        if view.frames is not None:
            self._film("all tokens", None)
        for kind, height, content in rows:
            kind(content, height)

    @property
    def _tall(self) -> float:
        return CELL_IN * min(self.aspect, 2.0)

    def _frame(self, unit: int) -> Any:
        view = self.view
        return blank(view.fates[0].grid) if view.frames is None else fitted(view.frames[unit], FRAME_PX)

    def _rows(self, fates: Fates) -> list[Any]:
        """(how it is drawn, its height, what it shows) of each row of a policy."""
        rows: list[Any] = [
            (self._caption, 0.3, fates),
            (lambda one, height: self._film(one.policy, one), self._tall, fates),
        ]
        bars: list[Any] = [
            ("tokens kept", fates.seen_per_unit, 0.0, "{:.3g}"),
            ("frame budget", fates.budget, 0.0, "{:.1%}"),
        ]
        bars += [("mean score", fates.score, None, "{:.3g}")]
        rows += [(self._bars, BAR_IN, bar) for bar in bars if bar[1] is not None]
        if fates.by_layer:
            rows.append((self._depth, BAR_IN * 1.6, fates))
        if fates.reads is not None:
            words = self.view.words[self.view.fates.index(fates)] if self.view.words else ()
            rows += [
                (self._strip, HEAT_IN, (words[number] if number < len(words) else f"token {number + 1}", row))
                for number, row in enumerate(fates.reads[:MOST_WORDS], start=1)
            ]
        return rows

    def _axes(self, height: float, left: float = LABEL_IN, width: float | None = None) -> "Axes":
        """The next axes below the last; `left` and the others in inches."""
        self.at -= height + 0.06
        wide = self.width - LABEL_IN if width is None else width
        place = (left / self.width, self.at / self.height, wide / self.width, height / self.height)
        return self.figure.add_axes(place)

    def _write_title(self) -> None:
        view = self.view
        text = f"{view.title}: " if view.title else ""
        seconds = view.times_s
        self.figure.text(
            0.08 / self.width,
            1 - 0.24 / self.height,
            plain(f"{text}what is kept of {view.fates[0].baseline:,} visual tokens in {view.units} frames", 110),
            fontsize=10,
            fontweight="bold",
            color=INK,
        )
        self.at -= 0.35
        for place, unit in enumerate(self.shown):
            when = "" if seconds is None else f", {seconds[unit]:.1f} s"
            x = (LABEL_IN + CELL_IN * (place + 0.5)) / self.width
            self.figure.text(
                x, (self.at - 0.12) / self.height, f"{unit + 1}{when}", fontsize=7, ha="center", color=SOFT
            )
        self.at -= 0.12

    def _caption(self, fates: Fates, height: float) -> None:
        self.at -= height
        words = plain(f"{fates.policy}: {summary(fates)}", 140)
        self.figure.text(0.08 / self.width, (self.at + 0.04) / self.height, words, fontsize=8, color=INK)

    def _film(self, name: str, fates: Fates | None) -> None:
        """A row of frames."""
        draw = None if fates is None else Overlays(fates)
        axes = self._axes(self._tall)
        axes.set(xlim=(0, len(self.shown)), ylim=(0, 1), xticks=[], yticks=[])
        axes.axis("off")
        for place, unit in enumerate(self.shown):
            frame = self._frame(int(unit))
            if draw is not None:
                overlay = draw.of(int(unit))
                grow = max(1, -(-overlay.shape[1] // frame.shape[1]))
                frame = painted(np.kron(frame, np.ones((grow, grow, 1), dtype=np.uint8)), overlay)
            axes.imshow(frame, extent=(place + 0.02, place + 0.98, 0, 1), aspect="auto", interpolation="antialiased")
            if fates is not None and (fates.fate[unit] == Fate.SKIPPED).all():
                axes.text(place + 0.5, 0.5, "skipped", color="white", fontsize=7, ha="center", va="center")
        self._label(plain(name, 18), bold=True)

    def _label(self, text: str, *, bold: bool = False, size: float = 8) -> None:
        weight = "bold" if bold else "normal"
        middle = self.figure.axes[-1].get_position()
        y = (middle.y0 + middle.y1) / 2
        self.figure.text(0.08 / self.width, y, text, fontsize=size, fontweight=weight, va="center", color=INK)

    def _bars(self, content: tuple[str, Any, float | None, str], height: float) -> None:
        """Bars of all units, also of those whose frames are not shown; from the lowest where `low` is None."""
        name, values, low, form = content
        axes = self._axes(height)
        finite = values[~np.isnan(values)]
        top, least = (float(finite.max()), float(finite.min())) if finite.size else (1.0, 0.0)
        base = least - 0.15 * ((top - least) or 1.0) if low is None else low
        axes.bar(np.arange(len(values)) + 0.5, np.nan_to_num(values - base), 0.86, bottom=base, color=BAR)
        axes.set(xlim=(0, len(values)), ylim=(base, top if top > base else base + 1), xticks=[])
        axes.tick_params(labelsize=6, length=2, colors=SOFT)
        axes.yaxis.tick_right()
        # from zero where the lowest is not told
        told = [top] if low is not None or top == least else [least, top]
        axes.set_yticks(told, [form.format(value) for value in told])
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        self._inset(axes)
        self._label(name)

    def _inset(self, axes: "Axes") -> None:
        """Leave room for the numbers on the right."""
        box = axes.get_position()
        axes.set_position((box.x0, box.y0, box.width - 0.42 / self.width, box.height))

    def _depth(self, fates: Fates, height: float) -> None:
        axes = self._axes(height)
        layers = np.arange(fates.layers)
        axes.bar(layers, fates.entered, 0.8, color=BAR, hatch="//", edgecolor="white", linewidth=0)
        axes.set(xlim=(-0.6, fates.layers - 0.4), ylim=(0, fates.baseline))
        axes.set_xticks(layers[:: max(1, fates.layers // 12)])
        axes.tick_params(labelsize=6, length=2, colors=SOFT, pad=1)
        axes.yaxis.tick_right()
        axes.set_yticks([fates.baseline])
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        self._inset(axes)
        self._label("entering\neach layer")
        self.at -= 0.12

    def _strip(self, content: tuple[str, Any], height: float) -> None:
        """What a word read of each unit, darker for more."""
        word, row = content
        axes = self._axes(height)
        axes.imshow(row[None], aspect="auto", cmap="Blues", vmin=0, vmax=1.2, extent=(0, len(row), 0, 1))
        axes.set(xticks=[], yticks=[])
        self._inset(axes)
        self._label(f"read: {plain(word.strip() or '␣', 10)}", size=7)
