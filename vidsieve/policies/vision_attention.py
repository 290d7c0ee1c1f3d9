"""How much attention each visual token receives in the vision tower."""

from collections.abc import Callable

import torch

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage


class VisionAttention(Stage):
    """Score each visual token by the attention it receives in the vision tower.

    The model's adapter measures it, as a mean over heads and over the tokens that attend; where a tower has a [CLS]
    token, papers read that token's row instead.

    Source: the dominant tokens of VisionZip, arXiv 2412.04467, section 3.2, in its form for towers without [CLS].
    """

    def needs(self) -> frozenset[str]:
        return frozenset({"vision_attention"})

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        values = tokens.signals["vision_attention"].to(tokens.features.device).float()
        return Scores(torch.where(tokens.keep, values, 0.0))


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("vision-attention", VisionAttention)
