"""`View`: one video under one or several policies, ready to be drawn as a page, a picture or a film."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import UsageError
from vidsieve.framework.report import Report
from vidsieve.tuner.atomic_files import write_atomically
from vidsieve.view.contents import Contents
from vidsieve.view.output_suffix import check_view_output
from vidsieve.view.sentences import summary
from vidsieve.view.shown_frames import unit_frames, unit_times
from vidsieve.view.token_fates import Fate, fates_of

NOTEBOOK_HEIGHT_PX = 900


class View(Contents):
    """Policies side by side on one time axis; in a notebook it shows itself as the page."""

    @property
    def summaries(self) -> list[str]:
        """The counts of each policy, a line each."""
        return [f"{fates.policy}: {summary(fates)}" for fates in self.fates]

    def to_list(self) -> list[dict[str, Any]]:
        """The counts of each policy as plain numbers and text, ready for JSON."""
        answers = [*self.answers, *[None] * len(self.fates)]
        return [
            {
                "policy": fates.policy,
                "requested_ratio": fates.requested_ratio,
                "attained_ratio": fates.attained_ratio,
                "baseline_tokens": fates.baseline,
                "prompt_tokens": fates.prompt_tokens,
                "merged_tokens": fates.count(Fate.MERGED),
                "skipped_frames": fates.skipped_units,
                "per_frame": fates.prompt_per_unit.tolist(),
                "entered_layers": fates.entered.tolist() if fates.by_layer else None,
                "kv_ratio": fates.kv_ratio,
                "answer": answer,
            }
            for fates, answer in zip(self.fates, answers, strict=False)
        ]

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
