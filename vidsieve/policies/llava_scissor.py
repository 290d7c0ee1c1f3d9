"""LLaVA-Scissor: tokens connected by similarity, in each frame and then over the video, become one.

The strongest links of a graph (its maximum spanning forest) hold its components at any threshold: those links above it
connect what all links above it connect. So a threshold, or a number of components, is a cut in one sorted list.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.counting import rank_in_line
from vidsieve.policies.shared.greedy import on_cpu

STEPS = 6
"""Halvings of the range in which the threshold is sought; what they leave open the strongest links decide."""


class Links(NamedTuple):
    """Links of a forest, the strongest first; ties by the lower point. Points are numbered over all rows."""

    one: Int[Tensor, " links"]
    other: Int[Tensor, " links"]
    strength: Float[Tensor, " links"]

    def first(self, count: int | Int[Tensor, ""]) -> "Links":
        """The `count` strongest."""
        return Links(*(part[:count] for part in self))


class ScissorMerge(Stage):
    """Merge visual tokens that are connected by similarity: within each frame, then over the whole video.

    Two tokens are linked if their cosine similarity is above `threshold`. The mean of each connected component of a
    frame represents it; components of these representatives, over the video, are represented by their mean. Then
    every token joins the representative z it is most like, and what stays is (z + sum of those) / (n + 1), in the
    place of the component's token most like z (which always joins its own).

    How many components there are depends on the video. With the threshold left out, it is chosen in each video so
    that the count asked for is met: the lowest that leaves enough, and then the strongest links beyond it.

    Source: LLaVA-Scissor, arXiv 2506.21862, and its code (github.com/HumanMLLM/LLaVA-Scissor at cdf85f4, CC BY-NC
    4.0), which samples the graph above some 2000 tokens, where this is complete.
    """

    solves = "threshold"
    data_dependent = True

    threshold: float | None = tunable(
        None, low=0.3, high=0.99, help="similarity of linked tokens, the paper's tau; left out, the count decides"
    )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (1.0 / shape.total if shape.total else 1.0, 1.0)

    def count_from_shape(self) -> bool:
        return self.threshold is None

    @hookimpl
    def merge_tokens(self, tokens: VideoTokens) -> Merge:
        alive = tokens.keep
        clean = tokens.living_features
        unit = normalize(clean, dim=-1)
        links = strongest_links(unit @ unit.transpose(1, 2), alive)
        if tokens.token_budget is None and self.threshold is None:
            raise PolicyError(
                "llava-scissor.merge: threshold was left out and nothing says how many tokens stay; set threshold, or "
                "make this the last reducing stage of a policy with a retention_ratio."
            )
        if tokens.token_budget is None:
            assert self.threshold is not None
            parts = _represent(clean, alive, links.first((links.strength > self.threshold).sum()))
            group = _connected(parts.direction, self.threshold)
        else:
            parts, below = _enough(clean, alive, links, tokens.token_budget)
            group = _joined_to(parts.direction, tokens.token_budget, below)
        return _melted(unit, alive, parts, group)


class _Parts(NamedTuple):
    """What represents the components of all frames, its direction, and to which each living token belongs."""

    mean: Float[Tensor, "means dim"]
    direction: Float[Tensor, "means dim"]
    of: Int[Tensor, " living"]


def _represent(clean: Float[Tensor, "frames tokens dim"], alive: Bool[Tensor, "frames tokens"], near: Links) -> _Parts:
    """The components that these links make of all frames."""
    root = components(torch.arange(alive.numel(), device=alive.device), near.one, near.other)
    living = alive.flatten().nonzero().squeeze(1)
    roots, of = torch.unique(root[living], return_inverse=True)
    mean = _means(clean.flatten(0, 1).index_select(0, living), of, len(roots))
    return _Parts(mean, normalize(mean, dim=-1), of)


def _means(rows: Float[Tensor, "rows dim"], into: Int[Tensor, " rows"], count: int) -> Float[Tensor, "{count} dim"]:
    """The mean of the rows that go into each."""
    total = rows.new_zeros(count, rows.shape[1])
    if on_cpu(rows):
        total.index_add_(0, into, rows)
    else:  # there index_add adds in any order, so that a run might choose otherwise than the one before
        total.index_put_((into,), rows, accumulate=True)
    return total / into.bincount(minlength=count).unsqueeze(1)


def _connected(direction: Float[Tensor, "means dim"], threshold: float) -> Int[Tensor, " means"]:
    """The component of each mean, as its lowest member."""
    near = pairs_above(direction, threshold)
    return components(torch.arange(len(direction), device=direction.device), near.one, near.other)


def _joined_to(direction: Float[Tensor, "means dim"], count: int, below: float) -> Int[Tensor, " means"]:
    """The component of each mean after the strongest links have left `count` of them.

    Looks at the pairs above `below` first, which are few and mostly enough.
    """
    means, step = len(direction), 0.01
    while True:
        links = forest(means, pairs_above(direction, below))
        if len(links.one) >= means - count:
            break
        below, step = below - step if below > -1 else -torch.inf, 4 * step
    first = links.first(means - count)
    return components(torch.arange(means, device=direction.device), first.one, first.other)


ROWS = 256
"""Means that are compared with all others at once."""


def pairs_above(direction: Float[Tensor, "points dim"], threshold: float) -> Links:
    """The pairs of points whose cosine is above the threshold, the lower point as `one`, in order of pairs.

    Never holds the similarities of all pairs: of 16,000 points they would be a gibibyte.
    """
    found = []
    for start in range(0, len(direction), ROWS):
        part = direction[start : start + ROWS]
        alike = part @ direction[start:].T
        one, other = _true(alike.gt(threshold).triu_(diagonal=1))
        found.append(Links(one + start, other + start, alike[one, other]))
    return Links(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _true(flags: Bool[Tensor, "rows columns"]) -> tuple[Int[Tensor, " true"], Int[Tensor, " true"]]:
    """Where flags are set, row by row."""
    if on_cpu(flags):  # numpy skips what is not set, many times as fast
        flat = torch.from_numpy(np.flatnonzero(flags.numpy()))
        return flat // flags.shape[1], flat % flags.shape[1]
    one, other = flags.nonzero(as_tuple=True)
    return one, other


def _enough(
    clean: Float[Tensor, "frames tokens dim"], alive: Bool[Tensor, "frames tokens"], links: Links, count: int
) -> tuple[_Parts, float]:
    """The frames at the lowest threshold (to a part in 2^STEPS) that leaves `count` components of the video or more;
    and a threshold below it.

    The frames alone must have that many, so the search starts at the first link that would be one too many.
    """
    spare = len(links.strength) + int(alive.any(dim=1).sum()) - count
    low = float(links.strength[spare]) if spare < len(links.strength) else -1.0
    high, enough = 1.001, 0  # above every cosine, also those a rounding above 1: no links
    tried: dict[int, _Parts] = {}
    for _ in range(STEPS):
        middle = (low + high) / 2
        near = int((links.strength > middle).sum())
        if near not in tried:  # the last two are kept, as these are large
            tried = {near: _represent(clean, alive, links.first(near))} | {n: tried[n] for n in tried if n == enough}
        if len(_connected(tried[near].direction, middle).unique()) >= count:
            high, enough = middle, near
        else:
            low = middle
    return tried.get(enough) or _represent(clean, alive, links.first(enough)), low


def _melted(
    unit: Float[Tensor, "frames tokens dim"],
    alive: Bool[Tensor, "frames tokens"],
    parts: _Parts,
    group: Int[Tensor, " means"],
) -> Merge:
    """Every token to its component's representative with its part in it, and to the one it is most like with 1."""
    living = alive.flatten().nonzero().squeeze(1)
    group = torch.unique(group, return_inverse=True)[1]
    in_group = group.bincount()
    representative = normalize(_means(parts.mean, group, len(in_group)), dim=-1)
    similarity = unit.flatten(0, 1).index_select(0, living) @ representative.T
    own = group[parts.of]
    place = rank_in_line(similarity.gather(1, own.unsqueeze(1)).squeeze(1), own, len(in_group)) == 0
    nearest = torch.where(place, own, similarity.argmax(dim=1))
    target = torch.empty_like(in_group).scatter_(0, own[place], living[place])
    part = 1 / (parts.of.bincount()[parts.of] * in_group[own])
    return Merge(
        torch.cat([living, living]),
        torch.cat([target[own], target[nearest]]),
        torch.cat([part, torch.ones_like(part)]),
    )


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
    links = torch.cat(taken).sort().values if taken else torch.zeros(0, dtype=torch.int64, device=device)
    one, other = links // total, links % total
    strength = similarity[one // points, one % points, other % points]
    order = torch.argsort(strength, descending=True, stable=True)
    return Links(one[order], other[order], strength[order])


def forest(points: int, near: Links) -> Links:
    """The maximum spanning forest of points with these links, given in order of pairs; as `strongest_links`."""
    order = torch.argsort(near.strength, descending=True, stable=True)
    one, other = near.one[order], near.other[order]
    rank = torch.arange(len(order), device=order.device)
    label = torch.arange(points, device=order.device)
    taken: list[Int[Tensor, " links"]] = []
    while True:
        ends = label[torch.stack([one[rank], other[rank]])]
        apart = (ends[0] != ends[1]).nonzero().squeeze(1)
        if len(apart) == 0:
            break
        rank, ends = rank[apart], ends[:, apart]
        best = torch.full_like(label, len(order)).scatter_reduce(0, ends.flatten(), rank.repeat(2), "amin").unique()
        best = best[best < len(order)]
        taken.append(best)
        label = components(label, label[one[best]], label[other[best]])
    links = order[torch.cat(taken).sort().values] if taken else order[:0]
    return Links(*(part[links] for part in near))


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


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("llava-scissor.merge", ScissorMerge)
