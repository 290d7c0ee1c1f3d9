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
from jaxtyping import Bool, Float, Int
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


def nodes(
    states: Float[Tensor, "tokens dim"],
    cell: Int[Tensor, " tokens"],
    grid: tuple[int, int, int],
    similarity: float,
    root_level: int,
) -> Nodes:
    """The nodes of all frames; `cell` is the place of each token in the grid, ascending. Absent ones count nowhere."""
    frames, height, width = grid
    cells, dim = height * width, states.shape[1]
    level = states.new_zeros(frames * cells, dim, dtype=torch.float32).index_copy(0, cell, states.float())
    living = torch.zeros(frames * cells, dtype=torch.bool, device=states.device).index_fill(0, cell, True)
    own, key, offset = cell, cell, 0
    part = running = torch.ones(len(cell), device=states.device)
    means = [level]
    frame = torch.arange(frames, device=states.device)[:, None]
    for parent in parents(height, width, root_level):
        above = int(parent[-1]) + 1
        up = (frame * above + parent.to(states.device)).flatten()
        offset += len(level)
        level, living, alike = _coarser(level, living, up, frames * above, similarity)
        own = up[own]
        children = alike.children[own]
        running = running / children
        stands = alike.stands[own]
        key, part = torch.where(stands, offset + own, key), torch.where(stands, running, part)
        means.append(level)
    found, node = torch.unique(key, return_inverse=True)
    place = torch.arange(len(cell), device=states.device)
    first = torch.full_like(found, len(cell)).scatter_reduce(0, node, place, "amin")
    # nodes in the order of their first tokens
    order = torch.argsort(first)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return Nodes(rank[node], part, torch.cat(means)[found[order]], first[order])


class _Alike(NamedTuple):
    children: Float[Tensor, " cells"]
    stands: Bool[Tensor, " cells"]


def _coarser(
    level: Float[Tensor, "cells dim"],
    living: Bool[Tensor, " cells"],
    up: Int[Tensor, " cells"],
    above: int,
    similarity: float,
) -> tuple[Float[Tensor, "above dim"], Bool[Tensor, " above"], _Alike]:
    """The next level, which of its cells have a child, how many they have, and whether they may stand for them."""
    weight = living.float()
    children = weight.new_zeros(above).index_add(0, up, weight)
    mean = level.new_zeros(above, level.shape[1]).index_add(0, up, level * weight[:, None])
    mean = mean / children.clamp(min=1)[:, None]
    unlike = living & (cosine_similarity(level, mean[up], dim=-1) < similarity)
    stands = weight.new_zeros(above).index_add(0, up, unlike.float()) == 0
    return mean, children > 0, _Alike(children.clamp(min=1), stands)


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
