"""How many tokens a selecting stage leaves: the budget the core gives the last one, else its keep_ratio."""

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import apportion, tokens_to_keep
from vidsieve.framework.records import VideoShape, VideoTokens


def tokens_to_leave(tokens: VideoTokens, keep_ratio: float | None, where: str) -> int:
    """Tokens of one video to leave; raises PolicyError when neither a budget nor a ratio says it."""
    if tokens.token_budget is not None:
        return tokens.token_budget
    if keep_ratio is None:
        raise PolicyError(
            f"{where}: how many tokens to keep was asked, neither keep_ratio nor a token budget came; "
            "set keep_ratio, or make this the last reducing stage of a policy with a retention_ratio."
        )
    return tokens_to_keep(int(tokens.keep.sum()), keep_ratio)


def attainable_by_ratio(shape: VideoShape, keep_ratio: float | None) -> tuple[float, float]:
    """Lowest and highest share of the offered tokens left by a stage that counts with `tokens_to_leave`."""
    if shape.total == 0:
        return (1.0, 1.0)
    if keep_ratio is None:
        return (1.0 / shape.total, 1.0)
    share = tokens_to_keep(shape.total, keep_ratio) / shape.total
    return (share, share)


def frames_and_total(shape: VideoShape, keep_ratio: float | None) -> tuple[int, int, int | None]:
    """Frames with a living token, living tokens, and how many of them a given ratio keeps."""
    frames = sum(count > 0 for count in shape.per_frame)
    return frames, shape.total, None if keep_ratio is None else tokens_to_keep(shape.total, keep_ratio)


def counts_of_frames(tokens: VideoTokens, total: int) -> Int[Tensor, " frames"]:
    """How many tokens each frame keeps: one where any lives, the rest as the budget says or by the living tokens."""
    alive = tokens.keep.sum(dim=1)
    living = (alive > 0).to(alive.dtype)
    share = (alive - living).double()
    if tokens.budget is not None and tokens.budget.counts is not None:
        return torch.minimum(tokens.budget.counts.to(alive.dtype).clamp(min=1), alive)
    if tokens.budget is not None and tokens.budget.share is not None:
        share = tokens.budget.share.double() * living
    return living + apportion(share, max(0, total - int(living.sum())), alive - living)
