"""EVS: the first frame whole, then the tokens least like the one at their place in the frame before."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, Scores
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable


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


class Select(Stage):
    """Keep the first frame whole and, wherever in the video they are, the highest scores of the rest.

    With `drop_ratio` given, `max(first frame, int(n * (1 - drop_ratio)))` of n tokens stay, which is vLLM's own
    counting (its `q`; the float product is truncated: 0.9 of 100 tokens leaves 9). Left out, the count is what the
    retention ratio asks, which cannot be less than the first frame. Equal scores go to the lower index. The first
    frame is the first with a living token.

    Source: Efficient Video Sampling, arXiv 2510.14624, as vLLM runs it (github.com/vllm-project/vllm at 094f117,
    vllm/multimodal/evs.py, Apache-2.0).
    """

    reads = ("scores",)
    solves = "drop_ratio"

    drop_ratio: float | None = tunable(
        None, low=0.0, high=0.99, help="dropped ÷ offered, vLLM's q; left out, the retention ratio decides"
    )

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        if shape.total == 0:
            return (1.0, 1.0)
        first = next(count for count in shape.per_frame if count)
        if self.drop_ratio is None:
            return (first / shape.total, 1.0)
        share = count_of(first, shape.total, self.drop_ratio) / shape.total
        return (share, share)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        assert tokens.scores is not None, "the core refuses a reader before its writer"
        alive = tokens.keep
        first = first_frame(alive)
        values = torch.where(alive, tokens.scores.values.float(), -torch.inf)
        # before all others, also those with an infinite score
        order = torch.argsort(values.flatten(), descending=True, stable=True)
        order = order[torch.argsort(first.flatten()[order].int(), descending=True, stable=True)]
        mask = torch.zeros_like(alive.flatten())
        mask[order[: self._count(tokens, first)]] = True
        mask = mask.view_as(alive) & alive
        return Keep(mask, scores=torch.where(alive, values, 0.0), protected=mask & first)

    def _count(self, tokens: VideoTokens, first: Bool[Tensor, "frames tokens"]) -> int:
        """How many tokens stay."""
        if tokens.token_budget is not None:
            return tokens.token_budget
        if self.drop_ratio is None:
            raise PolicyError(
                "evs.select: drop_ratio was left out and nothing solves it; set drop_ratio, or make this the last "
                "reducing stage of a policy with a retention_ratio."
            )
        in_first, total = torch.stack([first.sum(), tokens.keep.sum()]).tolist()
        return count_of(in_first, total, self.drop_ratio)


def count_of(first: int, total: int, drop_ratio: float) -> int:
    """vLLM's count. Not plans.tokens_to_keep: its code truncates the float product."""
    return max(first, int(total * (1 - drop_ratio)))


def first_frame(alive: Bool[Tensor, "frames tokens"]) -> Bool[Tensor, "frames tokens"]:
    """The living tokens of the first frame that has any."""
    living = alive.any(dim=1)
    return alive & (living & (living.cumsum(0) == 1)).unsqueeze(1)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("evs.novelty", Novelty)
    register("evs.select", Select)
