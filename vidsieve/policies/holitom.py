"""HoliTom: segments in which most stands still; what moves is chosen by attention, what stands still is clustered."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge, Segments
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import KeepsRatio, counts_of_groups, still_or_moving, tokens_to_leave
from vidsieve.policies.shared.dpc_knn import density_peaks, strongest
from vidsieve.policies.shared.frame_features import labels_of


class HoliTomSegments(Stage):
    """Cut the video so that as many visual tokens as possible repeat their segment.

    A place stands still from frame s to frame e if each of its tokens has a cosine similarity above `threshold` to the
    one before it. As a segment [s, e] saves e − s tokens at each such place; the cuts with the largest total are found
    by dynamic programming. Of equal totals the one with the shorter last segment is taken. A dead token ends
    stillness.

    Source: HoliTom, arXiv 2505.21334, "Global redundancy-aware temporal segmentation", and its code
    (github.com/cokeshao/HoliTom at b1d1412), which takes 0.8.
    """

    threshold: float = tunable(0.8, low=0.3, high=0.99, help="cosine similarity above which a place stands still")

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        alive = tokens.keep
        clean = tokens.living_features
        still = (cosine_similarity(clean[1:], clean[:-1], dim=-1) > self.threshold) & alive[1:] & alive[:-1]
        starts = torch.zeros(len(alive), dtype=torch.bool)
        starts[best_cuts(saved(still).tolist())] = True
        return Segments(labels_of(starts.to(alive.device)))


def saved(still: Bool[Tensor, "neighbours tokens"]) -> Int[Tensor, "frames frames"]:
    """At [e, n] the tokens saved by a segment that ends in frame e and begins n frames before it."""
    length = torch.arange(len(still) + 1, device=still.device)
    # a row of movement in front: nothing stands still before the first frame
    moves = torch.cat([torch.ones_like(still[:1]), ~still]) if len(still) else still.new_ones(1, still.shape[1])
    run = length.unsqueeze(1) - torch.where(moves, length.unsqueeze(1), 0).cummax(dim=0).values
    return (run.unsqueeze(1) >= length.view(1, -1, 1)).sum(dim=2) * length


def best_cuts(saved_by: list[list[int]]) -> list[int]:
    """First frames of the segments that save the most.

    A loop over frames, as each step needs the best of those before it; these are whole numbers on the CPU.
    """
    best, begins = [0], [0]  # of the first i frames, and where their last segment begins
    for end in range(len(saved_by)):
        total, begin = best[end], end
        for before in range(1, end + 1):
            candidate = best[end - before] + saved_by[end][before]
            if candidate > total:
                total, begin = candidate, end - before
        best.append(total)
        begins.append(begin)
    cuts, end = [], len(saved_by)
    while end > 0:
        end = begins[end]
        cuts.append(end)
    return cuts[::-1]


class HoliTomMerge(KeepsRatio):
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
    centre_weight: float = tunable(0.6, low=0.1, high=1.0, help="weight of a cluster's centre, the paper's beta")
    neighbours: int = tunable(7, low=1, high=16, help="tokens that tell how dense it is around one, itself included")

    def wants(self) -> frozenset[str]:
        return frozenset({"vision_attention"})

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
    register("holitom.segments", HoliTomSegments)
    register("holitom.merge", HoliTomMerge)
