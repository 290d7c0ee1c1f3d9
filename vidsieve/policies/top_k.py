"""Keep the highest scores: over the whole video, or within each line of a frame budget."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.budget_lines import budget_lines
from vidsieve.policies.shared.counting import KeepsRatio


class TopK(KeepsRatio):
    """Keep the visual tokens with the highest scores, over the whole video or as a frame budget says.

    Without a Budget the choice is global. A Budget's shares become counts by largest remainder, no frame above its
    living tokens, the total exact; its counts are taken as they are. Frames of one `group` share one line, the sum of
    theirs. Equal scores go to the lower index.
    """

    reads = ("scores",)
    reads_if_made = ("budget",)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        assert tokens.scores is not None, "the core refuses a reader before its writer"
        values = tokens.scores.values.float()
        lines, counts = budget_lines(tokens, self.keep_ratio, "top-k")
        token_lines = lines.unsqueeze(1).expand_as(tokens.keep).flatten()
        rank = rank_in_line(torch.where(tokens.keep, values, -torch.inf).flatten(), token_lines, counts.numel())
        mask = (rank < counts[token_lines]).view_as(tokens.keep) & tokens.keep
        return Keep(mask, scores=torch.where(tokens.keep, values, 0.0))


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


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("top-k", TopK)
