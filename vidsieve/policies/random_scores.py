"""The control every method has to beat: chance."""

from collections.abc import Callable

import torch

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage


class RandomScores(Stage):
    """Score each visual token by chance: every subset of one size is as likely as any other."""

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        # a permutation, not uniform draws: float32 draws tie now and then, and ties favour early tokens
        order = torch.randperm(tokens.keep.numel(), generator=tokens.rng)
        return Scores(order.view(tokens.keep.shape).float().to(tokens.features.device))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("random", RandomScores)
