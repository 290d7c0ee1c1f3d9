"""HoliTom's segments: the cuts that leave the most tokens standing still within a segment."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Segments
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
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


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("holitom.segments", HoliTomSegments)
