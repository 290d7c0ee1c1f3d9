"""What stands still within a segment becomes one token."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import refuse_token_budget
from vidsieve.policies.shared.frame_features import living_before


class StaticMerge(Stage):
    """Merge over time, within each segment, the visual tokens of a place that hardly changes.

    A place is static in a segment if the cosine similarity of its tokens is above `threshold`: their mean over all
    pairs of frames (`likeness: pairs`, PruneVid), or that of every frame to the one before (`neighbours`, HoliTom).
    Its tokens melt into their mean, each counted by the originals it stands for, where the first of them stood. How
    many there are depends on the video, so this stage cannot answer for a retention ratio: put one behind it that can.

    Source: PruneVid, arXiv 2412.16117, "Temporal merging" (github.com/Visual-AI/PruneVid at 8e90af0), and HoliTom,
    arXiv 2505.21334 (github.com/cokeshao/HoliTom at b1d1412). Both take 0.8.
    """

    reads = ("segments",)
    data_dependent = True

    threshold: float = tunable(0.8, low=0.3, high=0.99, help="cosine similarity above which a place stands still")
    likeness: Literal["pairs", "neighbours"] = Field("pairs", description="mean over all pairs, or each to the last")

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (max(shape.per_frame) / shape.total if shape.total else 1.0, 1.0)

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        refuse_token_budget(tokens, "static-merge")
        assert tokens.segments is not None, "the core refuses a reader before its writer"
        alive, segment = tokens.keep, tokens.segments.labels.long()
        unit = normalize(tokens.living_features, dim=-1)
        member = torch.nn.functional.one_hot(segment, len(segment)).float()
        before = before_in_segment(alive, segment)
        if self.likeness == "pairs":
            still = _alike_in_pairs(unit, alive, member) > self.threshold
        else:
            still = _alike_to_the_last(unit, before, member, self.threshold)
        return Merge.assign(_into_the_first(alive, alive & still[segment], before))


def before_in_segment(
    alive: Bool[Tensor, "frames tokens"], segment: Int[Tensor, " frames"]
) -> Int[Tensor, "frames tokens"]:
    """For living tokens the nearest earlier frame of the segment in which their place lives; else −1."""
    before = living_before(alive)
    return torch.where(alive & (segment[before.clamp(min=0)] == segment.unsqueeze(1)), before, -1)


def _alike_in_pairs(
    unit: Float[Tensor, "frames tokens dim"],
    alive: Bool[Tensor, "frames tokens"],
    member: Float[Tensor, "frames segments"],
) -> Float[Tensor, "segments tokens"]:
    """Mean cosine similarity over the pairs of living tokens of a place; −inf where there is no pair."""
    count = member.T @ alive.float()
    total = torch.einsum("fs,ftd->std", member, unit).square().sum(dim=-1)  # |Σu|² holds each pair twice, and n ones
    pairs = count * (count - 1)
    return torch.where(pairs > 0, (total - count) / pairs.clamp(min=1), -torch.inf)


def _alike_to_the_last(
    unit: Float[Tensor, "frames tokens dim"],
    before: Int[Tensor, "frames tokens"],
    member: Float[Tensor, "frames segments"],
    threshold: float,
) -> Bool[Tensor, "segments tokens"]:
    """Whether a place has two tokens at least and each is like the one before it."""
    place = torch.arange(unit.shape[1], device=unit.device)
    flat = before.clamp(min=0).mul(unit.shape[1]).add(place).flatten()
    earlier = unit.flatten(0, 1).index_select(0, flat).view_as(unit)
    alike = (unit * earlier).sum(dim=-1) > threshold
    pairs, broken = member.T @ (before >= 0).float(), member.T @ ((before >= 0) & ~alike).float()
    return (pairs > 0) & (broken == 0)


def _into_the_first(
    alive: Bool[Tensor, "frames tokens"], still: Bool[Tensor, "frames tokens"], before: Int[Tensor, "frames tokens"]
) -> Int[Tensor, "frames tokens"]:
    """Flat index of the token each one melts into: the first of its place in the segment, or itself; −1 for dead."""
    frame = torch.arange(len(alive), device=alive.device).unsqueeze(1).expand(alive.shape)
    first = torch.where(alive & (before < 0), frame, -1).cummax(dim=0).values
    place = torch.arange(alive.shape[1], device=alive.device)
    return torch.where(alive, torch.where(still, first, frame) * alive.shape[1] + place, -1)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("static-merge", StaticMerge)
