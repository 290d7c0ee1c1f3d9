"""STTM's quadtree: cells of a frame that are like their mean become one node, and nodes that last become one token.

A frame's tokens are the finest level of a pyramid; a cell of the next one is the mean of up to 2 × 2 cells (of an odd
side the first row or column stands alone). From the coarsest level down, a cell is a node if all its children have at
least the given cosine to it; else its children are looked at. So the node of a token is the coarsest cell around it
that may stand for its children.

Source: STTM, arXiv 2507.07990, and its code (github.com/HYUNJS/STTM at 5fe4475). In a cell with fewer than four
children the code also compares the frame's first cell with it, by the padding of an index; that is left out here.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity


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
