"""Which feature rows and placeholders of a video are visual tokens, and which stay under a plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidsieve.adapters.prompt.layouts import VideoLayout
from vidsieve.adapters.vision.encoding import Vision, repack, rows_of
from vidsieve.framework.planning.pipeline import TokenPlan


@dataclass(frozen=True, eq=False, kw_only=True)
class PlannedVideo:
    """A video with its plan, or (with no plan) a picture that is carried along whole.

    `layout` is the whole video's, `encoded` that of the units which the vision tower saw, `units` which those are
    (None for all).
    """

    layout: VideoLayout
    encoded: VideoLayout
    plan: TokenPlan | None
    units: Bool[Tensor, " units"] | None = None

    @property
    def removed(self) -> int:
        """Placeholders that go."""
        if self.plan is None:
            return 0
        fixed = self.encoded.rows - self.encoded.visual
        return self.layout.placeholders - self.plan.index.shape[0] - fixed

    def stays(self, device: torch.device) -> Bool[Tensor, " placeholders"]:
        """Which placeholders stay. The lead rows of a unit that was not encoded go with it."""
        flags = torch.ones(self.layout.rows, dtype=torch.bool, device=device)
        if self.plan is not None:
            (keep,) = self.plan.report.keeps
            flags[visual_rows(self.layout, device)] = keep.flatten().to(device)
        if self.units is not None and self.layout.lead:
            leads = flags[: self.layout.rows - self.layout.structural].unflatten(0, (self.layout.frames, -1))
            leads[:, : self.layout.lead] = self.units.to(device)[:, None]
        return flags[_present(self.layout, device)]

    def rows(self, rows: Float[Tensor, "all dim"], *, deep: bool = False) -> Float[Tensor, "kept dim"]:
        """The feature rows that stay, structural ones in their places; `deep` for the rows of another level."""
        if self.plan is None:
            return rows
        visual = visual_rows(self.encoded, rows.device)
        kept = self.plan.carry(rows[visual]) if deep else self.plan.features
        values = torch.cat([kept.to(rows), rows[~visual]])
        if not self.encoded.lead:
            return values
        index = self.plan.index.to(rows.device)
        places = torch.cat([visual.nonzero().squeeze(1)[index], (~visual).nonzero().squeeze(1)])
        return values[places.argsort()]


def visual_rows(layout: VideoLayout, device: torch.device) -> Bool[Tensor, " rows"]:
    """The feature rows that a policy may remove."""
    flags = torch.ones(layout.rows, dtype=torch.bool, device=device)
    inner = layout.rows - layout.structural
    if layout.lead:
        flags[:inner].unflatten(0, (layout.frames, -1))[:, : layout.lead] = False
    flags[inner:] = False
    return flags


def visual_placeholders(layout: VideoLayout, device: torch.device) -> Bool[Tensor, " placeholders"]:
    """The placeholders that stand for visual tokens."""
    return visual_rows(layout, device)[_present(layout, device)]


def _present(layout: VideoLayout, device: torch.device) -> Bool[Tensor, " rows"]:
    """The feature rows that have a placeholder."""
    flags = torch.ones(layout.rows, dtype=torch.bool, device=device)
    if layout.alive is not None:
        flags[visual_rows(layout, device)] = layout.alive.flatten().to(device)
    return flags


def shortened_output(vision: Vision, pictures: Sequence[PlannedVideo]) -> Any:
    """The kept rows of all pictures in a fresh output of the model's kind; DeepStack rows are carried along."""
    layouts = [picture.encoded for picture in pictures]

    def short(features: Sequence[Tensor], deep: bool) -> list[Tensor]:
        rows = rows_of(features, layouts)
        return [picture.rows(part, deep=deep) for picture, part in zip(pictures, rows, strict=True)]

    deep = None if vision.levels is None else [short(level, True) for level in vision.levels]
    return repack(vision.sample, short(vision.features, False), deep)
