"""STTM: behind an early layer, plain regions of a frame melt into one token, and what lasts melts over time.

A frame's tokens are the finest level of a pyramid; a cell of the next one is the mean of up to 2 × 2 cells (of an odd
side the first row or column stands alone). From the coarsest level down, a cell is a node if all its children have at
least the given cosine to it; else its children are looked at. So the node of a token is the coarsest cell around it
that may stand for its children.

Source: STTM, arXiv 2507.07990, and its code (github.com/HYUNJS/STTM at 5fe4475). In a cell with fewer than four
children the code also compares the frame's first cell with it, by the padding of an index; that is left out here.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import LayerTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.prune_depth import AFTER, prune_after


class Nodes(NamedTuple):
    """The node of each token, the part of the node's mean that is this token, each node's mean and first token."""

    node: Int[Tensor, " tokens"]
    part: Float[Tensor, " tokens"]
    mean: Float[Tensor, "nodes dim"]
    first: Int[Tensor, " nodes"]


@lru_cache(maxsize=64)
def parents(height: int, width: int, root_level: int) -> tuple[Tensor, ...]:
    """For each level but the last, the cell of the next level that each cell belongs to, within a frame.

    The coarsest level has a side of two; `root_level` of them are left out.
    """
    sizes = [(height, width)]
    while min(sizes[-1]) > 2:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    found = []
    for (rows, columns), (_, wide) in pairwise(sizes[: max(1, len(sizes) - root_level)]):
        up = [(torch.arange(side) + side % 2) // 2 for side in (rows, columns)]
        found.append((up[0][:, None] * wide + up[1]).flatten())
    return tuple(found)


class Pyramid:
    """The means of all levels of all frames, and how unlike its mean the least alike child of a cell is.

    `cell` is the place of each token in the grid, ascending. Cells without a token count nowhere.
    """

    def __init__(
        self,
        states: Float[Tensor, "tokens dim"],
        cell: Int[Tensor, " tokens"],
        grid: tuple[int, int, int],
        root_level: int,
    ) -> None:
        frames, height, width = grid
        self.cell = cell
        size = frames * height * width
        mean = states.new_zeros(size, states.shape[1], dtype=torch.float32).index_copy(0, cell, states.float())
        living = torch.zeros(size, device=states.device).index_fill(0, cell, 1.0)
        own, part = cell, torch.ones(len(cell), device=states.device)
        self.means, self.around = [mean], []
        frame = torch.arange(frames, device=states.device)[:, None]
        for parent in parents(height, width, root_level):
            above = int(parent[-1]) + 1
            up = (frame * above + parent.to(states.device)).flatten()
            mean, children, likeness = _coarser(mean, living, up, frames * above)
            living = (children > 0).float()
            own = up[own]
            part = part / children[own]
            self.around.append((own, part, likeness[own]))
            self.means.append(mean)

    def nodes(self, similarity: float) -> Nodes:
        """The node of each token: the coarsest cell around it whose children are alike enough."""
        key, part, offset = self.cell, torch.ones(self.cell.shape, device=self.cell.device), 0
        for level, (own, share, likeness) in zip(self.means, self.around, strict=False):
            offset += len(level)
            stands = likeness >= similarity
            key, part = torch.where(stands, offset + own, key), torch.where(stands, share, part)
        found, node = torch.unique(key, return_inverse=True)
        place = torch.arange(len(key), device=key.device)
        first = torch.full_like(found, len(key)).scatter_reduce(0, node, place, "amin")
        # nodes in the order of their first tokens
        order = torch.argsort(first)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return Nodes(rank[node], part, torch.cat(self.means)[found[order]], first[order])


def _coarser(
    level: Float[Tensor, "cells dim"], living: Float[Tensor, " cells"], up: Int[Tensor, " cells"], above: int
) -> tuple[Float[Tensor, "above dim"], Float[Tensor, " above"], Float[Tensor, " above"]]:
    """The next level, how many children its cells have, and the cosine of the least alike child to each."""
    children = living.new_zeros(above).index_add(0, up, living)
    total = level.new_zeros(above, level.shape[1]).index_add(0, up, level * living[:, None])
    mean = total / children.clamp(min=1)[:, None]
    alike = torch.where(living > 0, cosine_similarity(level, mean[up], dim=-1), torch.inf)
    return mean, children, alike.new_full((above,), torch.inf).scatter_reduce(0, up, alike, "amin")


def lasting(
    found: Nodes, cell: Int[Tensor, " tokens"], grid: tuple[int, int, int], similarity: float
) -> Int[Tensor, " nodes"]:
    """The earliest node that each node is joined to: nodes of neighbouring frames, one within the other, if alike.

    As in the code, labels are taken over from joined nodes until every label names a node that keeps its own.
    """
    frames, height, width = grid
    cells = height * width
    # two cells of a quadtree that share a token lie one within the other
    at = cell.new_full((frames * cells,), -1).index_copy(0, cell, found.node)
    now, later = at[:-cells], at[cells:]
    both = (now >= 0) & (later >= 0)
    now, later = now[both], later[both]
    alike = cosine_similarity(found.mean[now], found.mean[later], dim=-1) >= similarity
    now, later = now[alike], later[alike]
    label = torch.arange(len(found.first), device=cell.device)
    while True:
        least = torch.minimum(label[now], label[later])
        label = label.scatter_reduce(0, now, least, "amin").scatter_reduce(0, later, least, "amin")
        label = label[label]
        if torch.equal(label, label[label]):
            return label


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
