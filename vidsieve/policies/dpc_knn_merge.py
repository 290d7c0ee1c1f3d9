"""Each frame's visual tokens clustered by density peaks; a cluster becomes its mean."""

from collections.abc import Callable

import torch

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import attainable_by_ratio, counts_of_groups, still_or_moving, tokens_to_leave
from vidsieve.policies.shared.dpc_knn import density_peaks


class DpcKnnMerge(Stage):
    """Cluster each frame's visual tokens by density peaks and keep the mean of each cluster, at its centre's place.

    Tokens that were merged over time before (they stand for more than one original) are clustered apart from the
    others of their frame. Every such group keeps its part of the total by the number of its tokens, by largest
    remainder; a group whose part comes to none is lost. In the mean all tokens of a cluster count alike.

    Source: PruneVid, arXiv 2412.16117, "Spatial merging", and its code (github.com/Visual-AI/PruneVid at 8e90af0),
    which rounds each group on its own, down to half of it, and leaves groups of 14 tokens or fewer alone.
    """

    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None, low=0.01, high=1.0, help="kept ÷ offered; left out, the retention ratio decides"
    )
    neighbours: int = tunable(7, low=1, high=16, help="tokens that tell how dense it is around one, itself included")

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return attainable_by_ratio(shape, self.keep_ratio)

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
    register("dpc-knn.merge", DpcKnnMerge)
