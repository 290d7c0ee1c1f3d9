"""What a stage may decide, what a merge then does, and the two ways a ratio becomes a count.

A stage returns one of these frozen records; the core checks and applies it. Flat indices are
`frame * tokens + token`. Where a video comes in chunks, the `state` of a plan is what the same hook of the same stage
is shown with the next chunk (`VideoTokens.state`): tensors by name, of a size that does not grow, or None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeepFrames:
    """Units (frames, or temporal patches) that the vision tower must encode. True stays."""

    mask: Bool[Tensor, " units"]


@dataclass(frozen=True, eq=False)
class Segments:
    """Which frames belong together: one segment number a frame, starting at 0 and never falling."""

    labels: Int[Tensor, " frames"]
    state: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Budget:
    """How the token total is shared over frames.

    `share` is relative (only proportions matter) and independent of the retention ratio. `group`, if given, says
    which frames share one budget line. `counts` fixes the tokens per frame instead; a policy file allows it only
    with `exact: false`.
    """

    share: Float[Tensor, " frames"] | None = None
    group: Int[Tensor, " frames"] | None = None
    counts: Int[Tensor, " frames"] | None = None
    state: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each token matters; higher means keep. Finite or +inf, float32.

    On video tokens the axes are frames and tokens; from `prune_layer` one axis, the visual tokens of the video; from
    `evict_kv` prompts and their visual tokens.
    """

    values: Float[Tensor, "*tokens"]
    state: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Keep:
    """Which tokens stay. `scores` lets the core mend rounding; `protected` tokens are never touched by that."""

    mask: Bool[Tensor, "*tokens"]
    scores: Float[Tensor, "*tokens"] | None = None
    protected: Bool[Tensor, "*tokens"] | None = None
    state: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Merge:
    """Which tokens melt into which: pairs of flat indices, and what each source brings.

    A target lists itself as a source; a living token in no pair is dropped. The merged feature is the weighted mean
    of its sources in float32; without `weight` each source brings the number of originals it stands for. A merged
    token takes the place of its target. From `prune_layer`, targets may be named in `behind`: they move behind all
    other visual tokens of the video, in this order, and keep their positions.
    """

    source: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"] | None = None
    behind: Int[Tensor, " moved"] | None = None
    state: dict[str, Tensor] | None = None

    @classmethod
    def assign(cls, into: Int[Tensor, "*tokens"]) -> "Merge":
        """The merge in which token i melts into flat token `into[i]`; −1 drops it, itself keeps it."""
        flat = into.flatten()
        source = torch.nonzero(flat >= 0).squeeze(1)
        return cls(source=source, target=flat[source])


@dataclass(frozen=True, eq=False)
class KeepKV:
    """Which visual KV entries the layers after the prune point attend to in this decode step.

    `index` holds visual token numbers of the row (0 = first visual token), −1 where a row keeps fewer than the
    widest; the width is fixed for a request. A row with `active` False attends to everything. `state` is handed to
    the next step: batch-first tensors, or None.
    """

    index: Int[Tensor, "rows kept"]
    active: Bool[Tensor, " rows"]
    state: dict[str, Any] | None = None


def tokens_to_keep(count: int, ratio: float) -> int:
    """How many of `count` tokens a ratio keeps: `max(1, floor(round(count * ratio, 6)))`, never more than `count`.

    The rounding to six digits keeps 0.29 * 100 from becoming 28.
    """
    if count <= 0:
        return 0
    return min(count, max(1, int(round(count * ratio, 6))))


def apportion(
    share: Float[Tensor, " groups"] | Sequence[float], total: int, cap: Int[Tensor, " groups"] | Sequence[int]
) -> Int[Tensor, " groups"]:
    """Integer counts in proportion to `share` that sum to `min(total, sum(cap))`, none above its `cap`.

    Groups whose part exceeds their cap are filled to it, and what that leaves is shared over the others in
    proportion; then largest-remainder rounding, ties to the lower index. Shares must be finite and not negative; if
    all open ones are zero, they count as equal.
    """
    share = torch.as_tensor(share, dtype=torch.float64)
    cap = torch.as_tensor(cap, dtype=torch.int64, device=share.device)
    total = min(total, int(cap.sum()))
    full = cap == 0
    # each round fills at least one more group, so this ends; without a group over its cap it is one round
    while True:
        left = total - (cap * full).sum()
        wanted = _proportion(share, ~full) * left
        over = ~full & (wanted > cap + _SLACK)
        if not bool(over.any()):
            return torch.where(full, cap, _largest_remainder(wanted, left, ~full))
        full = full | over


_SLACK = 1e-9  # forgives 2.9999999996, which is 3 in exact arithmetic


def _proportion(share: Float[Tensor, " groups"], open_: Bool[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    """`share` over the open groups, summing to one; equal parts if nothing is shared; zero elsewhere."""
    part = torch.where(open_, share, 0.0)
    part = torch.where(part.sum() > 1e-300, part, open_.to(share.dtype))
    return part / part.sum().clamp(min=1e-300)


def _largest_remainder(
    wanted: Float[Tensor, " groups"], left: Int[Tensor, ""], open_: Bool[Tensor, " groups"]
) -> Int[Tensor, " groups"]:
    """Whole counts that sum to `left`: the floors, and one more for the largest remainders."""
    base = torch.floor(wanted + _SLACK)
    remainder = torch.where(open_, (wanted - base).clamp(min=0), -1.0)
    # remainders that differ by float noise alone are ties, and ties go to the lower index
    order = torch.argsort(torch.round(remainder, decimals=9), descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    return base.to(torch.int64) + (rank < left - base.sum())


def highest(
    values: Float[Tensor, "rows visual"], valid: Bool[Tensor, "rows visual"], counts: Sequence[int]
) -> Bool[Tensor, "rows visual"]:
    """The valid places with the highest values, so many of each row; ties go to the lower place."""
    order = torch.argsort(torch.where(valid, values, -torch.inf), dim=1, descending=True, stable=True)
    place = torch.arange(values.shape[1], device=values.device)
    chosen = place < torch.tensor(counts, device=values.device)[:, None]
    return torch.zeros_like(valid).scatter(1, order, chosen)


@dataclass(frozen=True, eq=False)
class MergeStep:
    """A merge as a linear map: pairs and normalised coefficients.

    `targets` marks the rows that live on, `mixed` those of them with more than one source.
    """

    source: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]
    coefficient: Float[Tensor, " pairs"]
    targets: Bool[Tensor, " all"]
    mixed: Bool[Tensor, " all"]

    def apply(self, rows: Shaped[Tensor, "all ..."]) -> Shaped[Tensor, "all ..."]:
        """Weighted means at the targets, in float32; other rows pass bit by bit."""
        flat = rows.reshape(rows.shape[0], -1)
        source, target, coefficient, mixed = (
            part.to(rows.device) for part in (self.source, self.target, self.coefficient, self.mixed)
        )
        summed = torch.zeros(flat.shape, dtype=torch.float32, device=rows.device)
        # index_select copies whole rows, several times as fast as an index in brackets
        summed.index_add_(0, target, flat.index_select(0, source).float() * coefficient[:, None])
        return torch.where(mixed[:, None], summed.to(rows.dtype), flat).reshape(rows.shape)


def melt(plan: Merge, weight: Float[Tensor, " all"]) -> tuple[MergeStep, Float[Tensor, " all"]]:
    """The step that carries out a checked `plan`, and how many originals each token stands for after it.

    The mean is weighted by what each pair brings; the originals of a source go where its weight goes, so that their
    number is kept whatever the weights of the mean are.
    """
    source, target = plan.source.long(), plan.target.long()
    brought = weight[source] if plan.weight is None else plan.weight.float()
    zeros = torch.zeros_like(weight)
    mass = zeros.index_add(0, target, brought)
    pairs = zeros.index_add(0, target, torch.ones_like(brought))
    given_away = zeros.index_add(0, source, torch.ones_like(brought))
    spread = zeros.index_add(0, source, brought)
    # a source brings all its originals, also where it brings weight 0 to all its targets
    part = torch.where(spread[source] > 0, brought / spread[source], 1 / given_away[source])
    originals = zeros.index_add(0, target, weight[source] * part)
    step = MergeStep(source, target, brought / mass[target], pairs > 0, pairs > 1)
    return step, torch.where(pairs > 0, originals, weight)
