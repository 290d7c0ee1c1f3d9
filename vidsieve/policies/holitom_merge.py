"""HoliTom's spatial part: tokens that move are chosen by attention, tokens that stand still are clustered."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import attainable_by_ratio, counts_of_groups, still_or_moving, tokens_to_leave
from vidsieve.policies.shared.dpc_knn import density_peaks, strongest


class HoliTomMerge(Stage):
    """Keep, of the tokens that move, those with the most vision attention; cluster those that stand still.

    Tokens merged over time before stand still (they stand for more than one original); they are clustered by density
    peaks, and a cluster becomes centre_weight · centre + (1 − centre_weight) · mean of the others. The others of each
    frame are kept by the vision tower's attention and the rest of them dropped; without that signal an earlier
    stage's Scores decide, without these they are clustered too. Every group keeps its part of the total by the number
    of its tokens, by largest remainder.

    Source: HoliTom, arXiv 2505.21334, "Spatial merging", and its code (github.com/cokeshao/HoliTom at b1d1412, D = 0),
    which rounds in every group on its own: up for tokens that move, to the nearest for those that stand still.
    """

    reads_if_made = ("scores",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None, low=0.01, high=1.0, help="kept ÷ offered; left out, the retention ratio decides"
    )
    centre_weight: float = tunable(0.6, low=0.1, high=1.0, help="weight of a cluster's centre, the paper's beta")
    neighbours: int = tunable(7, low=1, high=16, help="tokens that tell how dense it is around one, itself included")

    def wants(self) -> frozenset[str]:
        return frozenset({"vision_attention"})

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return attainable_by_ratio(shape, self.keep_ratio)

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        group = still_or_moving(tokens)
        counts = counts_of_groups(tokens, group, tokens_to_leave(tokens, self.keep_ratio, "holitom.merge"))
        clean = tokens.living_features
        ranking = _ranking(tokens)
        moving = torch.zeros_like(tokens.keep) if ranking is None else tokens.keep & (group % 2 == 0)
        clustered = torch.where(moving, -1, group)
        peaks = density_peaks(clean, clustered, counts, self.neighbours, no_more_than_clusters=True)
        place = torch.arange(group.shape[1], device=group.device).expand_as(group)
        into = peaks.joins
        if ranking is not None:
            into = torch.where(strongest(ranking, torch.where(moving, group, -1), counts), place, into)
        return self._weighted(into, tokens.weight.float())

    def _weighted(self, into: Int[Tensor, "frames tokens"], weight: Float[Tensor, "frames tokens"]) -> Merge:
        """The merge, each centre with its own share of the mean."""
        first = torch.arange(len(into), device=into.device).unsqueeze(1) * into.shape[1]
        pairs = Merge.assign(torch.where(into < 0, -1, into + first))
        brought = weight.flatten()[pairs.source]
        itself: Bool[Tensor, " pairs"] = pairs.source == pairs.target
        others = torch.zeros_like(weight.flatten()).index_add(0, pairs.target, torch.where(itself, 0.0, brought))
        share = (1 - self.centre_weight) * brought / others[pairs.target].clamp(min=1e-30)
        return Merge(pairs.source, pairs.target, torch.where(itself, self.centre_weight, share))


def _ranking(tokens: VideoTokens) -> Float[Tensor, "frames tokens"] | None:
    """What ranks the tokens that move; None if neither attention nor Scores are there."""
    values = tokens.signals.get("vision_attention")
    if values is None and tokens.scores is not None:
        values = tokens.scores.values
    return None if values is None else torch.where(tokens.keep, values.float(), 0.0)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("holitom.merge", HoliTomMerge)
