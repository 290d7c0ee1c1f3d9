"""How many tokens a selecting stage leaves: the budget the core gives the last one, else its keep_ratio."""

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import tokens_to_keep
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
