"""LLaVA-Scissor: tokens connected by similarity, in each frame and then over the video, become one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Merge
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.linkage import Links, components, strongest_links
from vidsieve.policies.top_k import rank_in_line

STEPS = 6
"""Halvings of the range in which the threshold is sought; what they leave open the strongest links decide."""


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
            group = _connected(parts.similarity, self.threshold)
        else:
            parts = _enough(clean, alive, links, tokens.token_budget)
            group = _joined_to(parts.similarity, tokens.token_budget)
        return _melted(unit, alive, parts, group)


class _Parts(NamedTuple):
    """What represents the components of all frames, how alike they are, and to which each living token belongs."""

    mean: Float[Tensor, "means dim"]
    similarity: Float[Tensor, "means means"]
    of: Int[Tensor, " living"]


def _represent(clean: Float[Tensor, "frames tokens dim"], alive: Bool[Tensor, "frames tokens"], near: Links) -> _Parts:
    """The components that these links make of all frames."""
    per_frame = alive.shape[1]
    root = components(torch.arange(alive.numel(), device=alive.device), near.one, near.other)
    member = one_hot(root.view(alive.shape) % per_frame, per_frame).float() * alive.unsqueeze(-1)
    mean = member.transpose(1, 2) @ clean / member.sum(dim=1).unsqueeze(-1).clamp(min=1)
    roots, of = torch.unique(root[alive.flatten()], return_inverse=True)
    mean = mean.flatten(0, 1)[roots]
    direction = normalize(mean, dim=-1)
    return _Parts(mean, direction @ direction.T, of)


def _connected(similarity: Float[Tensor, "means means"], threshold: float) -> Int[Tensor, " means"]:
    """The component of each mean, as its lowest member."""
    one, other = (similarity > threshold).triu(diagonal=1).nonzero(as_tuple=True)
    return components(torch.arange(len(similarity), device=similarity.device), one, other)


def _joined_to(similarity: Float[Tensor, "means means"], count: int) -> Int[Tensor, " means"]:
    """The component of each mean after the strongest links have left `count` of them."""
    every = torch.ones_like(similarity[:1], dtype=torch.bool)
    links = strongest_links(similarity.unsqueeze(0), every).first(len(similarity) - count)
    return components(torch.arange(len(similarity), device=similarity.device), links.one, links.other)


def _enough(
    clean: Float[Tensor, "frames tokens dim"], alive: Bool[Tensor, "frames tokens"], links: Links, count: int
) -> _Parts:
    """The frames at the lowest threshold (to a part in 2^STEPS) that leaves `count` components of the video or more.

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
        if len(_connected(tried[near].similarity, middle).unique()) >= count:
            high, enough = middle, near
        else:
            low = middle
    return tried.get(enough) or _represent(clean, alive, links.first(enough))


def _melted(
    unit: Float[Tensor, "frames tokens dim"],
    alive: Bool[Tensor, "frames tokens"],
    parts: _Parts,
    group: Int[Tensor, " means"],
) -> Merge:
    """Every token to its component's representative with its part in it, and to the one it is most like with 1."""
    living = alive.flatten().nonzero().squeeze(1)
    group = torch.unique(group, return_inverse=True)[1]
    member = one_hot(group).float()
    in_group = member.sum(dim=0)
    representative = normalize(member.T @ parts.mean / in_group.unsqueeze(1), dim=-1)
    similarity = unit.flatten(0, 1)[living] @ representative.T
    own = group[parts.of]
    place = rank_in_line(similarity.gather(1, own.unsqueeze(1)).squeeze(1), own, len(in_group)) == 0
    nearest = torch.where(place, own, similarity.argmax(dim=1))
    target = torch.empty_like(in_group, dtype=torch.int64).scatter_(0, own[place], living[place])
    part = 1 / (parts.of.bincount()[parts.of] * in_group[own])
    return Merge(
        torch.cat([living, living]),
        torch.cat([target[own], target[nearest]]),
        torch.cat([part, torch.ones_like(part)]),
    )


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("llava-scissor.merge", ScissorMerge)
