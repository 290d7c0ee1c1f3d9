"""Random and structured removal of visual tokens in training. None of it looks at what a token shows."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def kept_tokens(
    videos: int, groups: int, tokens: int, rng: torch.Generator, *, ratio: float | None = None
) -> Int[Tensor, "videos kept"]:
    """Ascending indices of the visual tokens that stay: one ratio and one pattern for the whole batch.

    A ratio that is left out is drawn between 0.08 and 1.
    """
    if ratio is None:
        ratio = 0.08 + 0.92 * torch.rand(1, generator=rng).item()
    count = max(1, round(ratio * groups * tokens))
    pattern = PATTERNS[int(torch.randint(len(PATTERNS), (1,), generator=rng))]
    score = pattern(videos, groups, tokens, rng)
    return score.flatten(1).topk(count, dim=1).indices.sort(dim=1).values


def _anywhere(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """Every token with the same chance."""
    return torch.rand(videos, groups, tokens, generator=rng)


def _frames(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """Whole frames first."""
    return torch.rand(videos, groups, 1, generator=rng) + 1e-3 * _anywhere(videos, groups, tokens, rng)


def _tubes(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """The same places in all frames."""
    return torch.rand(videos, 1, tokens, generator=rng) + 1e-3 * _anywhere(videos, groups, tokens, rng)


def _anchors(videos: int, groups: int, tokens: int, rng: torch.Generator) -> Float[Tensor, "videos groups tokens"]:
    """Some frames whole, the others thinned at random."""
    anchor = torch.rand(videos, groups, 1, generator=rng) < 0.25
    return _anywhere(videos, groups, tokens, rng) + anchor


PATTERNS: tuple[Callable[[int, int, int, torch.Generator], Float[Tensor, "videos groups tokens"]], ...] = (
    _anywhere,
    _anywhere,
    _frames,
    _tubes,
    _anchors,
)
