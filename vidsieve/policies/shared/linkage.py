"""Connected components of similarity graphs, for every threshold at once.

The strongest links of a graph (its maximum spanning forest) hold its components at any threshold: those links above it
connect what all links above it connect. So a threshold, or a number of components, is a cut in one sorted list.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Links(NamedTuple):
    """Links of a forest, the strongest first; ties by the lower point. Points are numbered over all rows."""

    one: Int[Tensor, " links"]
    other: Int[Tensor, " links"]
    strength: Float[Tensor, " links"]

    def first(self, count: int | Int[Tensor, ""]) -> "Links":
        """The `count` strongest."""
        return Links(*(part[:count] for part in self))


def strongest_links(similarity: Float[Tensor, "rows points points"], alive: Bool[Tensor, "rows points"]) -> Links:
    """The maximum spanning tree of the living points of each row.

    Borůvka's: in every round each component takes its strongest link to another one, so that there are at most half as
    many after it. Equal links go to the lower pair of points, without which they could close a ring.
    """
    rows, points = alive.shape
    total, device = rows * points, alive.device
    similarity = torch.maximum(similarity, similarity.transpose(1, 2))  # a product rounds its two halves unlike
    both = alive.unsqueeze(2) & alive.unsqueeze(1)
    label = torch.arange(total, device=device)
    start = label.view(rows, points)[:, :1]
    taken: list[Int[Tensor, " links"]] = []
    while True:
        in_row = label.view(rows, points)
        outside = both & (in_row.unsqueeze(2) != in_row.unsqueeze(1))
        value, partner = similarity.masked_fill(~outside, -torch.inf).max(dim=2)
        value, partner = value.flatten(), (partner + start).flatten()
        best = torch.full((total,), -torch.inf, device=device).scatter_reduce(0, label, value, "amax")
        here = torch.arange(total, device=device)
        pair = torch.minimum(here, partner) * total + torch.maximum(here, partner)
        pair = torch.where((value == best[label]) & ~value.isinf(), pair, total * total)
        chosen = torch.full((total,), total * total, device=device).scatter_reduce(0, label, pair, "amin").unique()
        chosen = chosen[chosen < total * total]
        if len(chosen) == 0:
            break
        taken.append(chosen)
        label = components(label, label[chosen // total], label[chosen % total])
    links = torch.cat(taken) if taken else torch.zeros(0, dtype=torch.int64, device=device)
    one, other = links // total, links % total
    strength = similarity[one // points, one % points, other % points]
    order = torch.argsort(strength, descending=True, stable=True)
    return Links(one[order], other[order], strength[order])


def components(
    label: Int[Tensor, " points"], one: Int[Tensor, " links"], other: Int[Tensor, " links"]
) -> Int[Tensor, " points"]:
    """The lowest label connected to each point, given links between labels; a label names its lowest point."""
    root = torch.arange(len(label), device=label.device)
    while True:
        lowest = torch.minimum(root[one], root[other])
        # what a point hangs from is told too, so that whole trees join at once
        ends = torch.cat([one, other, root[one], root[other]])
        joined = root.scatter_reduce(0, ends, lowest.repeat(4), "amin")
        joined = joined[joined]
        if torch.equal(joined, root):
            return root[label]
        root = joined
