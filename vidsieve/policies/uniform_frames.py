"""The control for spending tokens cleverly: fewer frames, evenly spaced."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.counting import KeepsRatio, tokens_to_leave


class UniformFrames(KeepsRatio):
    """Keep whole frames, evenly spaced over the video; the last of them takes the remainder, spread evenly in it.

    Frames without a living token are passed over.
    """

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        total = tokens_to_leave(tokens, self.keep_ratio, "uniform-frames")
        counts = evenly_spaced_counts(tokens.keep.sum(dim=1).tolist(), total)
        return Keep(_evenly_spaced_tokens(tokens.keep, torch.tensor(counts, device=tokens.keep.device)))


def evenly_spaced_counts(alive: list[int], total: int) -> list[int]:
    """Tokens of each frame, given the living ones: whole frames in the middle of equal spans, the last one cut."""
    living = [frame for frame, count in enumerate(alive) if count]
    fewest = -(-total // max(alive))
    for spans in range(min(fewest, len(living)), len(living) + 1):
        chosen = [living[(2 * span + 1) * len(living) // (2 * spans)] for span in range(spans)]
        if sum(alive[frame] for frame in chosen) >= total:
            break
    counts, left = [0] * len(alive), total
    for frame in chosen:
        counts[frame] = min(alive[frame], left)
        left -= counts[frame]
    return counts


def _evenly_spaced_tokens(
    alive: Bool[Tensor, "frames tokens"], counts: Int[Tensor, " frames"]
) -> Bool[Tensor, "frames tokens"]:
    """`counts` of the living tokens of each frame, spread evenly over them."""
    place = alive.cumsum(dim=1)
    share, offered = counts.unsqueeze(1), place[:, -1:].clamp(min=1)
    # the k-th of n is taken when k * count / n passes a whole number there: exactly `count` times
    steps_up = (place * share // offered) > ((place - 1) * share // offered)
    return alive & steps_up


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("uniform-frames", UniformFrames)
