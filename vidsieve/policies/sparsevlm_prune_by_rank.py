"""SparseVLM's first form: how many visual tokens go on follows from the rank of the attention they are paid."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, Merge
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after
from vidsieve.policies.shared.sparsevlm import pruned, relevance


class SparseVLMByRank(Stage):
    """Keep as many visual tokens as the rank of the raters' attention says; melt the best of the rest.

        k = min(int(scale * rank(P) + bias), v − 1)      P the attention of raters to v visual tokens

    In practice the rank is the number of raters, so a longer question keeps more, and later points change little.
    The count depends on the content: the policy has no retention ratio to be asked for. Raters, scores and melting
    are those of `sparsevlm.prune`. The first release has scale and bias 13.5 and 0, 9 and 6 or 0.8 and 0 after layers
    2, 6, 15 and 19; its code for video has 1 and 0 after layer 1 alone.

    Source: SparseVLM, arXiv 2410.04417, "sparsification level adaptation", and its code
    (github.com/Gumpest/SparseVLMs at 91fb6d9, and f05b898 for video).
    """

    reads_if_made = ("budget",)
    data_dependent = True

    scale: float = tunable(13.5, low=0.0, high=1000.0, help="tokens kept per unit of rank")
    bias: float = tunable(0.0, low=0.0, high=1000.0, help="tokens kept in any case")
    after: tuple[int | float, ...] = Field((2, 6, 15, 19), min_length=1, description=AFTER)
    recycle: bool = Field(True, description="melt the best of the tokens that leave, instead of dropping them all")
    melted: Literal["centre", "behind"] = Field("centre", description="where melted tokens stand in the sequence")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("sparsevlm.prune-by-rank", self.after, num_layers)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Keep | Merge:
        rows, scores = relevance(tokens)
        rank = int(torch.linalg.matrix_rank(rows))
        count = max(1, min(int(rank * self.scale + self.bias), len(scores) - 1))
        # the code leaves everything where the rank is full
        count = len(scores) if rank == len(scores) else count
        return pruned(tokens, scores, count, recycle=self.recycle, behind=self.melted == "behind")


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("sparsevlm.prune-by-rank", SparseVLMByRank)
