"""`View`: one video under one or several policies, ready to be drawn as a page, a picture or a film."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vidsieve.framework.errors import UsageError
from vidsieve.framework.report import Report
from vidsieve.tuner.atomic_files import check_output, write_atomically
from vidsieve.view.shown_frames import unit_frames, unit_times
from vidsieve.view.sentences import sentences
from vidsieve.view.token_fates import Fates, fates_of

SUFFIXES = (".html", ".png", ".mp4")
NOTEBOOK_HEIGHT_PX = 900


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """Policies side by side on one time axis; in a notebook it shows itself as the page.

    `frames` holds the first frame of each unit, or is None. `words` are, for each policy, the tokens it generated
    as text, `answers` what they make together.
    """

    fates: tuple[Fates, ...]
    frames: UInt8[np.ndarray, "units height width 3"] | None = None
    times_s: Float[np.ndarray, " units"] | None = None
    words: tuple[tuple[str, ...], ...] = ()
    answers: tuple[str, ...] = ()
    title: str = ""
    question: str = ""
    facts: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """How many units the video has."""
        return self.fates[0].units

    @property
    def sentences(self) -> list[str]:
        """What the picture cannot show, in words: policies that act nowhere visible, stages that did not run."""
        return [line for fates in self.fates for line in sentences(fates)]

    def html(self) -> str:
        """Write the page: one file that loads nothing from elsewhere."""
        from vidsieve.view.view_page import page_html

        return page_html(self)

    def write(self, path: str | Path, *, force: bool = False) -> Path:
        """Write .html, .png or .mp4, as the suffix says; whole or not at all.

        Raises:
            UsageError: another suffix; the file exists and `force` is not given; its folder cannot be written to.
            MediaError: a film that cannot be encoded.
        """
        path = check_view_output(path, force=force)
        if path.suffix.lower() == ".mp4":
            from vidsieve.view.film import write_film

            return write_film(self, path)
        if path.suffix.lower() == ".png":
            from vidsieve.view.still import still_png

            return write_atomically(path, still_png(self), force=force, what="view")
        return write_atomically(path, self.html(), force=force, what="view")

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its styles and those of the notebook do not mix."""
        return (
            f'<iframe title="Vidsieve: what is kept" srcdoc="{html.escape(self.html())}" sandbox="allow-scripts" '
            f'style="width:100%;height:{NOTEBOOK_HEIGHT_PX}px;border:0"></iframe>'
        )


def show(
    reports: Report | Sequence[Report],
    frames: Any = None,
    *,
    timestamps_s: Any = None,
    words: Sequence[Sequence[str]] | None = None,
    answers: Sequence[str] = (),
    video: int = 0,
    title: str = "",
    question: str = "",
    facts: Sequence[str] = (),
) -> View:
    """Put what one or several policies did to the same video side by side.

    Reading the reports waits for the device; call this before the next `generate` of the same `applied` block, which
    lets go of what older reports refer to.

    Args:
        reports: of calls on the same video, one a policy.
        frames: those that the model was given: a `Clip`, or uint8 RGB [frames 3 height width]. Without them the tokens
            are drawn on grey.
        timestamps_s: seconds of each frame, where `frames` is no `Clip`.
        words: for each report the generated tokens as text, to stand beside what each of them read.
        answers: for each report the whole answer.
        video: which video of the calls, counted over all rows of a batch.
        title, question, facts: what the page says about the video.

    Raises:
        UsageError: no report, reports of different videos, or frames that do not fit.
    """
    given = [reports] if isinstance(reports, Report) else list(reports)
    if not given:
        raise UsageError("show: at least one report is needed, got none.")
    fates = tuple(fates_of(report, video) for report in given)
    shapes = {one.fate.shape for one in fates}
    if len(shapes) > 1:
        found = ", ".join(f"{units} x {tokens}" for units, tokens in sorted(shapes))
        raise UsageError(
            f"show: the reports are of different videos ({found} visual tokens); give reports of the same one."
        )
    return View(
        fates=fates,
        frames=unit_frames(frames, fates[0].units),
        times_s=unit_times(frames, timestamps_s, fates[0].units),
        words=tuple(tuple(row) for row in words or ()),
        answers=tuple(answers),
        title=title,
        question=question,
        facts=tuple(facts),
    )


def check_view_output(path: str | Path, *, force: bool = False) -> Path:
    """Refuse a file that could not be written at the end. Raises UsageError."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"`out` {path}: must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {suffix or 'no ending'!r}.")
    return check_output(path, force=force)
