import torch

from vidsieve import Scores, Stage, VideoTokens, hookimpl


class Loudest(Stage):
    """Score each visual token by its largest channel."""

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().abs().amax(dim=-1))


class LateFirst(Stage):
    """Score each visual token by the number of its frame."""

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.frame_index.float()[:, None] * torch.ones_like(tokens.weight))


@hookimpl
def register_stages(register):
    register("loudest", Loudest)
    register("late-first", LateFirst)
