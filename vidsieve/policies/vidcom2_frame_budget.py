"""VidCom²'s frame compression adjustment: more tokens for frames unlike the rest of the video."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Budget
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.vidcom2 import likeness


class FrameBudget(Stage):
    """Give frames that are unlike the rest of the video a larger share of the token total.

    With u the mean unlikeness of a frame's tokens to the video and T the number of frames,

        share = (1 + σ − 1/T) / T      σ = softmax(u / temperature)

    which is between (1 − 1/T) and (2 − 1/T) times the average; at the paper's temperature σ is nearly one-hot.
    `counting: released` returns the released code's own integer counts instead. They miss the total asked, as
    each frame is rounded and cut at its own size alone; a policy file needs `exact: false` for them.

    Source: VidCom², arXiv 2505.14454, "Frame Compression Adjustment", and its code at 944a17d.
    """

    optional = True

    temperature: float = tunable(
        0.01, low=0.003, high=1.0, log=True, help="softmax temperature; high shares the total evenly"
    )
    channel_ratio: float = tunable(0.5, low=0.125, high=1.0, help="channels compared ÷ all, the steadiest first")
    counting: Literal["share", "released"] = Field(
        "share", description="shares of an exact total, or the counts of the released code"
    )

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        sigma = self._sigma(tokens)
        if self.counting == "released":
            return Budget(counts=_released_counts(tokens, sigma))
        living = tokens.keep.any(dim=1)
        frames = living.sum().clamp(min=1)
        return Budget(share=torch.where(living, (1 + sigma - 1 / frames) / frames, 0.0))

    def _sigma(self, tokens: VideoTokens) -> Float[Tensor, " frames"]:
        """Softmax over the living frames of how unlike the video they are; zero for frames without a living token."""
        mass = torch.where(tokens.keep, tokens.weight.float(), 0.0)
        redundant = (likeness(tokens, self.channel_ratio).video * mass).sum(1) / mass.sum(1).clamp(min=1.0)
        unlike = torch.where(tokens.keep.any(dim=1), -redundant, -torch.inf)
        return torch.nan_to_num(torch.softmax(unlike / self.temperature, dim=0), nan=0.0)


def _released_counts(tokens: VideoTokens, sigma: Float[Tensor, " frames"]) -> Int[Tensor, " frames"]:
    """`max(1, round_half_even(min(1, R * (1 + σ - mean σ)) * M))` with M the living tokens of the frame."""
    if tokens.retention_ratio is None:
        raise PolicyError(
            "vidcom2.frame-budget: counting 'released' multiplies the policy's retention_ratio, none came; "
            "set retention_ratio in the policy file or with `retention`."
        )
    alive = tokens.keep.sum(dim=1)
    frames = (alive > 0).sum().clamp(min=1)
    scale = (tokens.retention_ratio * (1 + sigma - sigma.sum() / frames)).clamp(max=1.0)
    return torch.minimum(torch.round(scale * alive).to(torch.int64).clamp(min=1), alive)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("vidcom2.frame-budget", FrameBudget)
