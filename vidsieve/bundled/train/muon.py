"""Muon for the decoder's matrices and AdamW for all other weights, as one optimizer.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum of a matrix
by the nearest matrix with orthonormal rows or columns, so that every direction of every layer learns at one pace.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM, NEWTON_SCHULZ_STEPS = 0.95, 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for `matrices`, AdamW for `others`. `scale_rates` sets both rates for the next step."""

    def __init__(
        self, matrices: Iterable[Tensor], others: Iterable[Tensor], *, rate: float, other_rate: float, decay: float
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(matrices), "lr": rate, "peak": rate, "orthogonal": True},
            {"params": list(others), "lr": other_rate, "peak": other_rate, "orthogonal": False},
        ]
        super().__init__(groups, {"decay": decay})

    def scale_rates(self, factor: float) -> None:
        """Both rates at `factor` times their peak."""
        for group in self.param_groups:
            group["lr"] = factor * group["peak"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; weights without a gradient stay."""
        assert closure is None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if group["orthogonal"]:
                self._orthogonal(weights, group["lr"], group["decay"])
            else:
                self._adam(weights, group["lr"], group["decay"])

    def _orthogonal(self, weights: list[Tensor], rate: float, decay: float) -> None:
        """Matrices of one size are orthogonalised as a batch."""
        by_size: dict[torch.Size, list[Tensor]] = {}
        for weight in weights:
            by_size.setdefault(weight.shape, []).append(weight)
        for size, alike in by_size.items():
            moved = []
            for weight in alike:
                assert weight.grad is not None
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                moved.append(weight.grad.lerp(momentum, MOMENTUM))
            update = orthogonalised(torch.stack(moved)) * max(1.0, size[0] / size[1]) ** 0.5
            for weight, change in zip(alike, update, strict=True):
                weight.mul_(1 - rate * decay).sub_(change, alpha=rate)

    def _adam(self, weights: list[Tensor], rate: float, decay: float) -> None:
        for weight in weights:
            assert weight.grad is not None
            state = self.state[weight]
            if not state:
                state.update(count=0, first=torch.zeros_like(weight), second=torch.zeros_like(weight))
            state["count"] += 1
            state["first"].lerp_(weight.grad, 0.1)
            state["second"].lerp_(weight.grad.square(), 0.02)
            mean = state["first"] / (1 - 0.9 ** state["count"])
            spread = (state["second"] / (1 - 0.98 ** state["count"])).sqrt() + 1e-8
            weight.mul_(1 - rate * decay).sub_(mean / spread, alpha=rate)


def orthogonalised(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """About the nearest semi-orthogonal matrices, by a quintic Newton-Schulz iteration (singular values 0.7 to 1.2)."""
    tall = matrices.shape[1] > matrices.shape[2]
    now = matrices.mT if tall else matrices
    now = (now / (now.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = now @ now.mT
        now = linear * now + (cubic * gram + quintic * gram @ gram) @ now
    return (now.mT if tall else now).to(matrices)
