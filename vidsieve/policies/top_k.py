"""Keep the highest scores: over the whole video, or within each line of a frame budget."""

from collections.abc import Callable

import torch

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.counting import KeepsRatio, budget_lines, rank_in_line


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


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("top-k", TopK)
