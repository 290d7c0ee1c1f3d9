"""EVS's score: how much a visual token differs from the one at its place in the frame before."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage


class Novelty(Stage):
    """Score each visual token by its cosine dissimilarity to the token at its place in the frame before.

    A token with nothing before it scores +inf: all of the first frame, and those whose counterpart an earlier stage
    dropped.

    Source: Efficient Video Sampling, arXiv 2510.14624, as vLLM runs it (github.com/vllm-project/vllm at 094f117,
    vllm/multimodal/evs.py, Apache-2.0); there in the model's dtype, here in float32.
    """

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(dissimilarity(tokens.features, tokens.keep))


def dissimilarity(
    features: Float[Tensor, "frames tokens dim"], alive: Bool[Tensor, "frames tokens"]
) -> Float[Tensor, "frames tokens"]:
    """One minus the cosine similarity to the frame before; +inf where nothing alive is before."""
    clean = torch.where(alive.unsqueeze(-1), features, 0.0).float()
    unlike = 1 - cosine_similarity(clean[1:], clean[:-1], dim=-1)
    nothing_before = torch.full_like(clean[:1, :, 0], torch.inf)
    return torch.cat([nothing_before, unlike.masked_fill(~alive[:-1], torch.inf)])


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("evs.novelty", Novelty)
