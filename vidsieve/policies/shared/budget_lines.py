"""How many tokens each line of a frame budget keeps: a line is a frame, a group of frames, or the whole video."""

import torch
from jaxtyping import Int, Num
from torch import Tensor

from vidsieve.framework.plans import Budget, apportion
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.counting import tokens_to_leave


def budget_lines(
    tokens: VideoTokens, keep_ratio: float | None, where: str
) -> tuple[Int[Tensor, " frames"], Int[Tensor, " lines"]]:
    """The budget line of each frame, and how many tokens each line keeps; without a Budget one line is the video.

    Raises:
        PolicyError: neither a token budget, nor a ratio, nor counts say how many.
    """
    frames = tokens.keep.shape[0]
    alive = tokens.keep.sum(dim=1)
    budget = tokens.budget
    if budget is None:
        total = tokens_to_leave(tokens, keep_ratio, where)
        return torch.zeros_like(alive), torch.full_like(alive[:1], total)
    lines = _lines(budget, frames, alive.device)
    if budget.counts is not None:
        return lines, _per_line(budget.counts.to(alive.dtype), lines)
    assert budget.share is not None, "a Budget has shares or counts"
    total = tokens_to_leave(tokens, keep_ratio, where)
    return lines, apportion(_per_line(budget.share.double(), lines), total, _per_line(alive, lines))


def _lines(budget: Budget, frames: int, device: torch.device) -> Int[Tensor, " frames"]:
    """Which budget line each frame draws on: its group's, or its own."""
    if budget.group is None:
        return torch.arange(frames, device=device)
    return torch.unique(budget.group, return_inverse=True)[1]


def _per_line(amount: Num[Tensor, " frames"], lines: Int[Tensor, " frames"]) -> Num[Tensor, " frames"]:
    """Sum of the frames' amounts in each line; lines that no frame draws on hold zero."""
    return torch.zeros_like(amount).scatter_add_(0, lines, amount)
