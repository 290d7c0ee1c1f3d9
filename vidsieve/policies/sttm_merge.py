"""STTM: behind an early layer, plain regions of a frame melt into one token, and what lasts melts over time."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after
from vidsieve.policies.shared.quadtree import Pyramid, lasting


class STTM(Stage):
    """Melt each plain region of a frame into one token, then tokens of the same region in frames that follow.

    Regions are cells of a quadtree over the hidden states of a frame: a cell stays whole where all its quarters have
    at least `similarity` (cosine) to its mean, else its quarters are looked at, down to single tokens. Then tokens of
    neighbouring frames of which one lies within the other melt where they have `temporal_similarity`; a chain of them
    melts into its earliest. A token stands at the top left of its earliest region and keeps that position.

    The count depends on the content. Where more would stay than a retention ratio asks for, both thresholds are lowered
    by the same amount, as little as that takes (to one in 1000); where fewer stay, they stay. The paper tunes the two
    for a share of tokens and a data set instead.

    The code acts before layer 2, which is `after: 1`, and leaves out the coarsest level of the tree.

    Source: STTM, arXiv 2507.07990, and its code (github.com/HYUNJS/STTM at 5fe4475).
    """

    data_dependent = True

    similarity: float = tunable(
        0.85, low=0.3, high=1.0, help="cosine of all quarters to their cell for it to stay whole"
    )
    temporal_similarity: float = tunable(0.6, low=0.3, high=1.0, help="cosine from which tokens melt over time")
    root_level: int = Field(
        1, ge=0, description="coarsest levels of the quadtree left out; level 0 has two cells a side"
    )
    after: int | float = Field(0.0625, ge=0, description=AFTER)

    def needs(self) -> frozenset[str]:
        return frozenset({"token_grid"})

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return prune_after("sttm.merge", (self.after,), num_layers)

    @hookimpl
    def prune_layer(self, tokens: LayerTokens) -> Merge:
        if tokens.token_grid is None:
            raise PolicyError(
                "sttm.merge: the tokens' token_grid was asked, none came; use a model family whose adapter offers it."
            )
        _, height, width = tokens.token_grid
        cell = tokens.frame * (height * width) + tokens.token
        pyramid = Pyramid(tokens.hidden, cell, tokens.token_grid, self.root_level)
        into, part, count = self._melted(pyramid, tokens.token_grid, 0.0)
        if tokens.afford is not None and count > tokens.afford + 1e-6:
            enough, lowered = 0.0, 2.0  # a cosine is never 2 below a threshold
            into, part, _ = self._melted(pyramid, tokens.token_grid, lowered)
            for _ in range(11):
                middle = (enough + lowered) / 2
                tried = self._melted(pyramid, tokens.token_grid, middle)
                if tried[2] > tokens.afford + 1e-6:
                    enough = middle
                else:
                    lowered, (into, part, _) = middle, tried
        return Merge(torch.arange(len(into), device=into.device), into, weight=part)

    def _melted(
        self, pyramid: Pyramid, grid: tuple[int, int, int], lower: float
    ) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"], int]:
        """Who melts into whom, with what share, and how many stay, with both thresholds lowered."""
        found = pyramid.nodes(self.similarity - lower)
        label = lasting(found, pyramid.cell, grid, self.temporal_similarity - lower)
        stays = label == torch.arange(len(label), device=label.device)
        return found.first[label][found.node], found.part, int(stays.sum())


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("sttm.merge", STTM)
