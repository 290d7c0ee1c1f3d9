"""How many tokens a selecting stage leaves, in all and of each line of a frame budget.

The total is the budget that the core gives the last reducing stage, else the share of the stage's `keep_ratio`. A line
is a frame, a group of frames, or the whole video.
"""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import Budget, apportion, tokens_to_keep
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable


def tokens_to_leave(tokens: VideoTokens, keep_ratio: float | None, where: str) -> int:
    """Tokens of one video to leave; raises PolicyError when neither a budget nor a ratio says it."""
    if tokens.token_budget is not None:
        return tokens.token_budget
    if keep_ratio is None:
        raise PolicyError(
            f"{where}: how many tokens to keep was asked, neither keep_ratio nor a token budget came; "
            "set keep_ratio, or make this the last reducing stage of a policy with a retention_ratio."
        )
    return tokens_to_keep(int(tokens.keep.sum()), keep_ratio)


def attainable_by_ratio(shape: VideoShape, keep_ratio: float | None) -> tuple[float, float]:
    """Lowest and highest share of the offered tokens left by a stage that counts with `tokens_to_leave`."""
    if shape.total == 0:
        return (1.0, 1.0)
    if keep_ratio is None:
        return (1.0 / shape.total, 1.0)
    share = tokens_to_keep(shape.total, keep_ratio) / shape.total
    return (share, share)


def frames_and_total(shape: VideoShape, keep_ratio: float | None) -> tuple[int, int, int | None]:
    """Frames with a living token, living tokens, and how many of them a given ratio keeps."""
    frames = sum(count > 0 for count in shape.per_frame)
    return frames, shape.total, None if keep_ratio is None else tokens_to_keep(shape.total, keep_ratio)


def counts_of_frames(tokens: VideoTokens, total: int) -> Int[Tensor, " frames"]:
    """How many tokens each frame keeps: one where any lives, the rest as the budget says or by the living tokens."""
    alive = tokens.keep.sum(dim=1)
    living = (alive > 0).to(alive.dtype)
    share = (alive - living).double()
    if tokens.budget is not None and tokens.budget.counts is not None:
        return torch.minimum(tokens.budget.counts.to(alive.dtype).clamp(min=1), alive)
    if tokens.budget is not None and tokens.budget.share is not None:
        share = tokens.budget.share.double() * living
    return living + apportion(share, max(0, total - int(living.sum())), alive - living)


def refuse_token_budget(tokens: VideoTokens, where: str) -> None:
    """For a stage whose count depends on content alone; raises PolicyError if it must answer for a total."""
    if tokens.token_budget is not None:
        raise PolicyError(
            f"{where}: {tokens.token_budget} tokens asked, but how many it leaves depends on the video; put a stage "
            "that counts behind it, or give the policy no retention_ratio."
        )


def counts_of_groups(tokens: VideoTokens, group: Int[Tensor, "frames tokens"], total: int) -> Int[Tensor, " groups"]:
    """How many tokens each group keeps, in proportion to its living ones; groups of a frame are 2 f and 2 f + 1."""
    sizes = torch.zeros(2 * len(group), dtype=torch.int64, device=group.device)
    sizes.scatter_add_(0, group.clamp(min=0).flatten(), tokens.keep.flatten().long())
    return apportion(sizes.double(), total, sizes)


def still_or_moving(tokens: VideoTokens) -> Int[Tensor, "frames tokens"]:
    """Two groups a frame: 2 f for tokens that stand for themselves, 2 f + 1 for merged ones; −1 for dead tokens."""
    frame = torch.arange(len(tokens.keep), device=tokens.keep.device).unsqueeze(1)
    return torch.where(tokens.keep, 2 * frame + (tokens.weight > 1), -1)


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


def rank_in_line(
    values: Float[Tensor, " all"], token_lines: Int[Tensor, " all"], num_lines: int
) -> Int[Tensor, " all"]:
    """Place of each token among the tokens of its line, 0 = highest value; equal values in order of index."""
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(token_lines[order], stable=True)]
    sizes = torch.zeros(num_lines, dtype=torch.int64, device=values.device)
    sizes.scatter_add_(0, token_lines, torch.ones_like(token_lines))
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(values.numel(), device=values.device)
    rank = torch.empty_like(place)
    rank[order] = place - starts[token_lines[order]]
    return rank


class KeepsRatio(Stage):
    """A stage that keeps a share of what it is offered: the one it is given, or what the retention ratio leaves it."""

    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None,
        low=0.01,
        high=1.0,
        help="kept ÷ offered; left out, the retention ratio decides",
    )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return attainable_by_ratio(shape, self.keep_ratio)
