"""How much each visual token has to do with the question."""

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn.functional import normalize

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable


class TextRelevance(Stage):
    """Score each visual token by its likeness to the text after the video.

        score of token i = mean over words w of the cosine of feature i and input embedding w

    Both live in the language model's input space, which every model has; nothing trained them to be alike there, so
    this is a weaker sign of relevance than the image and text features of CLIP. With `favour: unlike` the sign is
    turned. Without a question all tokens score the same.

    Source: the query relevance of CDPruner, arXiv 2506.10967, section 3.2, and its code
    (github.com/Theia-4869/CDPruner), on other features: there CLIP's projected image and text features,
    whose cosine the code negates.
    """

    favour: Literal["like", "unlike"] = tunable("like", help="which tokens score high: those like the text, or unlike")

    def wants(self) -> frozenset[str]:
        return frozenset({"question"})

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        if tokens.question is None or len(tokens.question) == 0:
            return Scores(torch.zeros(tokens.keep.shape, device=tokens.features.device))
        living = tokens.living_features
        # the mean of cosines is the cosine with the mean of unit vectors, up to its length
        words = normalize(tokens.question.float(), dim=-1).mean(dim=0)
        like = normalize(living, dim=-1) @ words.to(living.device)
        return Scores(like if self.favour == "like" else -like)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("text-relevance", TextRelevance)
