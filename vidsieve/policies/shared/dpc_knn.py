"""Clustering by density peaks with k nearest neighbours, many sets of points at once.

    ρ_i = exp(-mean of the k smallest D_ij²)                D_ij = |x_i - x_j| / √C, itself (0) included
    δ_i = min {D_ij : j denser than i}, for the densest the largest D of its set
    centres = the largest ρ δ; every other point joins the nearest centre

Of equal densities the lower index counts as denser, where the papers' code adds noise of 1e-6 to ρ.

Source: DPC-KNN (Du, Ding and Jia, Knowledge-Based Systems 99, 2016), as used on visual tokens by PruneVid (arXiv
2412.16117; github.com/Visual-AI/PruneVid at 8e90af0).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.policies.shared.counting import rank_in_line


class Peaks(NamedTuple):
    """The centres, and the place in its row of the centre that each point joins; −1 where there is none."""

    centre: Bool[Tensor, "rows points"]
    joins: Int[Tensor, "rows points"]


def density_peaks(
    points: Float[Tensor, "rows points dim"],
    group: Int[Tensor, "rows points"],
    clusters: Int[Tensor, " groups"],
    neighbours: int,
    *,
    no_more_than_clusters: bool = False,
) -> Peaks:
    """Cluster each group of points on its own, into so many clusters.

    `group` numbers the groups over all rows, −1 for points that belong to none and must not matter; a group lies
    within one row. A group with no clusters joins nothing. Points must be finite, also those of no group. With
    `no_more_than_clusters` a group has no more neighbours than clusters, as HoliTom's code has it.
    """
    limit = clusters[group.clamp(min=0)] if no_more_than_clusters else torch.full_like(group, neighbours)
    strength, distance = peak_strength(distances(points), group, neighbours, limit)
    centre = strongest(strength, group, clusters)
    joins = distance.masked_fill(~centre[:, None, :], torch.inf)
    into = torch.where(joins.amin(dim=-1).isinf(), -1, joins.argmin(dim=-1))
    place = torch.arange(group.shape[1], device=group.device).expand_as(group)
    return Peaks(centre, torch.where(centre, place, into))


def peak_strength(
    distance: Float[Tensor, "rows points points"],
    group: Int[Tensor, "rows points"],
    neighbours: int,
    limit: Int[Tensor, "rows points"] | None = None,
) -> tuple[Float[Tensor, "rows points"], Float[Tensor, "rows points points"]]:
    """ρ δ of each point, and the distances within groups; +inf between them. `limit` may lower the neighbours."""
    apart = (group[:, :, None] != group[:, None, :]).logical_or_((group < 0)[:, None, :])
    distance = distance.masked_fill(apart, torch.inf)
    density = _density(distance, neighbours, torch.full_like(group, neighbours) if limit is None else limit)
    return density * _gap(distance, apart, density), distance


BLOCK = 1 << 22
"""Numbers of float64 that distances are worked out from at once."""
NOISE = 3e-14
"""What rounding leaves of the squared distance of two equal points, ÷ their squared lengths."""


def distances(points: Float[Tensor, "rows points dim"]) -> Float[Tensor, "rows points points"]:
    """D of the points of each row, finer than float32 and 0 between equal points.

    Products of float64 are several times as fast as differences of float32, and lose less: what cancels in them is far
    below what float32 can tell apart.
    """
    found = []
    for part in points.split(max(1, BLOCK // max(1, points[:1].numel()))):
        wide = part.double()
        product = wide @ wide.transpose(1, 2)
        square = product.diagonal(dim1=1, dim2=2) * (1 - NOISE)
        apart = (square.unsqueeze(2) + square.unsqueeze(1)).sub_(product, alpha=2).clamp_(min=0)
        found.append(apart.div_(points.shape[-1]).float().sqrt_())
    return torch.cat(found)


def smallest(values: Float[Tensor, "*rows points"], count: int) -> Float[Tensor, "*rows smallest"]:
    """The `count` smallest of each row, ascending; all where a row has fewer."""
    count = min(count, values.shape[-1])
    if values.is_cpu:
        # numpy sorts with vector instructions, many times as fast as topk
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1)[..., :count])
    return values.topk(count, dim=-1, largest=False, sorted=True).values


def _density(
    distance: Float[Tensor, "rows points points"], neighbours: int, limit: Int[Tensor, "rows points"]
) -> Float[Tensor, "rows points"]:
    """ρ: how near the nearest points of the group are, all of them in a smaller group."""
    nearest = smallest(distance, neighbours)
    place = torch.arange(nearest.shape[-1], device=distance.device)
    counted = (place < limit.unsqueeze(-1)) & nearest.isfinite()
    squares = torch.where(counted, nearest, 0.0).square().sum(dim=-1)
    return torch.exp(-squares / counted.sum(dim=-1).clamp(min=1))


def _gap(
    distance: Float[Tensor, "rows points points"],
    apart: Bool[Tensor, "rows points points"],
    density: Float[Tensor, "rows points"],
) -> Float[Tensor, "rows points"]:
    """δ: the distance to the nearest denser point of the group."""
    rank = torch.argsort(torch.argsort(density, dim=-1, descending=True, stable=True), dim=-1)
    gap = distance.masked_fill(rank[:, None, :] >= rank[:, :, None], torch.inf).amin(dim=-1)
    farthest = distance.masked_fill(apart, 0.0).amax(dim=-1)
    largest = farthest[:, None, :].masked_fill(apart, 0.0).amax(dim=-1)
    return torch.where(gap.isinf(), largest, gap)


def strongest(
    strength: Float[Tensor, "rows points"], group: Int[Tensor, "rows points"], counts: Int[Tensor, " groups"]
) -> Bool[Tensor, "rows points"]:
    """So many points of each group with the largest strength; ties to the lower index, none of no group."""
    line = torch.where(group < 0, counts.numel(), group).flatten()
    rank = rank_in_line(strength.flatten(), line, counts.numel() + 1)
    wanted = torch.cat([counts, torch.zeros_like(counts[:1])])
    return (rank < wanted[line]).view_as(group)
