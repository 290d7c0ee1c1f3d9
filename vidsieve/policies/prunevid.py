"""PruneVid: clusters of frames by density peaks make segments, clusters of a frame's tokens become their means."""

from collections.abc import Callable
from itertools import groupby

import torch

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge, Segments
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import KeepsRatio, counts_of_groups, still_or_moving, tokens_to_leave
from vidsieve.policies.shared.dpc_knn import density_peaks
from vidsieve.policies.shared.frame_features import frame_means, labels_of


class DpcKnnSegments(Stage):
    """Cluster the frames by density peaks and make each cluster's longest run of frames a segment.

    The frames' mean features form `max(1, int(T * segment_ratio))` clusters. Of each cluster the longest run of
    frames stays (several, if they are equally long), none if it is one frame. A gap between runs joins the longer
    neighbour, the left one of equals; gaps are closed from left to right. A frame without a living token is in no
    cluster.

    Source: PruneVid, arXiv 2412.16117, "Temporal merging", and its code (github.com/Visual-AI/PruneVid at 8e90af0),
    which has 0.25 and 7.
    """

    segment_ratio: float = tunable(0.25, low=0.05, high=1.0, help="clusters of frames ÷ frames")
    neighbours: int = tunable(7, low=1, high=16, help="frames that tell how dense it is around one, itself included")

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        living = tokens.keep.any(dim=1)
        group = torch.where(living, 0, -1).unsqueeze(0)
        clusters = living.sum().double().mul(self.segment_ratio).to(torch.int64).clamp(min=1).view(1)
        peaks = density_peaks(frame_means(tokens).unsqueeze(0), group, clusters, self.neighbours)
        runs = torch.tensor(longest_runs(peaks.joins[0].tolist()), device=living.device)
        return Segments(labels_of(runs.diff(prepend=runs[:1]) != 0))


def longest_runs(cluster: list[int]) -> list[int]:
    """The cluster of each frame after all but the longest runs were given to a neighbour; −1 is a frame of none.

    A loop over runs, as what a gap joins depends on the gaps before it; these are a few whole numbers a video.
    """
    runs = [(label, len(list(run))) for label, run in groupby(cluster)]
    longest = {label: max(length for other, length in runs if other == label) for label, _ in runs}
    kept = [(label if label >= 0 and 1 < longest[label] == length else None, length) for label, length in runs]
    gaps = [(label, sum(length for _, length in run)) for label, run in groupby(kept, key=lambda one: one[0])]
    filled: list[tuple[int, int]] = []
    for place, (label, length) in enumerate(gaps):
        left = filled[-1] if filled else (0, 0)
        right = gaps[place + 1] if label is None and place + 1 < len(gaps) else (None, 0)
        if label is None:
            label = right[0] if right[0] is not None and right[1] > left[1] else left[0]
        if filled and filled[-1][0] == label:
            filled[-1] = (label, left[1] + length)
        else:
            filled.append((label, length))
    return [label for label, length in filled for _ in range(length)]


class DpcKnnMerge(KeepsRatio):
    """Cluster each frame's visual tokens by density peaks and keep the mean of each cluster, at its centre's place.

    Tokens that were merged over time before (they stand for more than one original) are clustered apart from the
    others of their frame. Every such group keeps its part of the total by the number of its tokens, by largest
    remainder; a group whose part comes to none is lost. In the mean all tokens of a cluster count alike.

    Source: PruneVid, arXiv 2412.16117, "Spatial merging", and its code (github.com/Visual-AI/PruneVid at 8e90af0),
    which rounds each group on its own, down to half of it, and leaves groups of 14 tokens or fewer alone.
    """

    neighbours: int = tunable(7, low=1, high=16, help="tokens that tell how dense it is around one, itself included")

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        group = still_or_moving(tokens)
        counts = counts_of_groups(tokens, group, tokens_to_leave(tokens, self.keep_ratio, "dpc-knn.merge"))
        clean = tokens.living_features
        joins = density_peaks(clean, group, counts, self.neighbours).joins
        first = torch.arange(len(joins), device=joins.device).unsqueeze(1) * joins.shape[1]
        pairs = Merge.assign(torch.where(joins < 0, -1, joins + first))
        return Merge(pairs.source, pairs.target, torch.ones_like(pairs.source, dtype=torch.float32))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("dpc-knn.segments", DpcKnnSegments)
    register("dpc-knn.merge", DpcKnnMerge)
