"""What a `Merge` does to features and weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vidsieve.framework.plans import Merge


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
