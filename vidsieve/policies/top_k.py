"""Keep the highest scores: over the whole video, or within each line of a frame budget."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Budget, Keep, apportion
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies._counting import attainable_by_ratio, tokens_to_leave


class TopK(Stage):
    """Keep the visual tokens with the highest scores, over the whole video or as a frame budget says.

    Without a Budget the choice is global. A Budget's shares become counts by largest remainder, no frame above its
    living tokens, the total exact; its counts are taken as they are. Frames of one `group` share one line, the sum of
    theirs. Equal scores go to the lower index.
    """

    reads = ("scores",)
    reads_if_made = ("budget",)
    solves = "keep_ratio"

    keep_ratio: float | None = tunable(
        None,
        low=0.01,
        high=1.0,
        help="kept ÷ offered; left out, the retention ratio decides",
    )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return attainable_by_ratio(shape, self.keep_ratio)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        assert tokens.scores is not None, "the core refuses a reader before its writer"
        values = tokens.scores.values.float()
        lines, counts = self._budget_lines(tokens)
        token_lines = lines.unsqueeze(1).expand_as(tokens.keep).flatten()
        rank = rank_in_line(torch.where(tokens.keep, values, -torch.inf).flatten(), token_lines, counts.numel())
        mask = (rank < counts[token_lines]).view_as(tokens.keep) & tokens.keep
        return Keep(mask, scores=torch.where(tokens.keep, values, 0.0))

    def _budget_lines(self, tokens: VideoTokens) -> tuple[Int[Tensor, " frames"], Int[Tensor, " lines"]]:
        """The budget line of each frame, and how many tokens each line keeps."""
        frames = tokens.keep.shape[0]
        alive = tokens.keep.sum(dim=1)
        budget = tokens.budget
        if budget is None:
            total = tokens_to_leave(tokens, self.keep_ratio, "top-k")
            return torch.zeros_like(alive), torch.full_like(alive[:1], total)
        lines = _lines(budget, frames, alive.device)
        if budget.counts is not None:
            return lines, _per_line(budget.counts.to(alive.dtype), lines)
        assert budget.share is not None, "a Budget has shares or counts"
        total = tokens_to_leave(tokens, self.keep_ratio, "top-k")
        return lines, apportion(_per_line(budget.share.double(), lines), total, _per_line(alive, lines))


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


def _lines(budget: Budget, frames: int, device: torch.device) -> Int[Tensor, " frames"]:
    """Which budget line each frame draws on: its group's, or its own."""
    if budget.group is None:
        return torch.arange(frames, device=device)
    return torch.unique(budget.group, return_inverse=True)[1]


def _per_line(amount: Num[Tensor, " frames"], lines: Int[Tensor, " frames"]) -> Num[Tensor, " frames"]:
    """Sum of the frames' amounts in each line; lines that no frame draws on hold zero."""
    return torch.zeros_like(amount).scatter_add_(0, lines, amount)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("top-k", TopK)
