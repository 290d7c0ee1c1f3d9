"""VidCom²: more tokens for frames unlike the rest of the video, and of each frame the tokens least like the rest.

Both stages read how much a visual token resembles its video and its frame:

    y = x' / |x'|          x' are the half of the channels that vary least over the video
    g = mean of y          over the video, or over the frame
    K = sum over a of exp(-|y - g|² / 2a),  a in {1/8, 1/4, 1/2, 1, 2}      high = redundant

Source: VidCom² (arXiv 2505.14454) as its code computes it (github.com/xuyang-liu16/VidCom2 at 944a17d,
Apache-2.0). The paper has cosine similarity over all channels; the published numbers come from the code.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Budget, Scores
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.policies.shared.blocks import blocks


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


class TokenScore(Stage):
    """Score each visual token by how little it resembles the centre of its video and the centre of its frame.

    Source: VidCom², arXiv 2505.14454, "Adaptive Token Compression", and its code at 944a17d.
    """

    channel_ratio: float = tunable(0.5, low=0.125, high=1.0, help="channels compared ÷ all, the steadiest first")
    frame_weight: float = tunable(
        1.0, low=0.0, high=2.0, help="weight of likeness to the frame beside likeness to the video"
    )

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        found = likeness(tokens, self.channel_ratio)
        return Scores(-(found.video + self.frame_weight * found.frame))


CHANNELS = 16
"""Channels that are summed together at the least."""
BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


class Likeness(NamedTuple):
    """Kernel similarity of each token to the centres of its video and frame, in (0, 5]; high = redundant."""

    video: Float[Tensor, "frames tokens"]
    frame: Float[Tensor, "frames tokens"]


def likeness(tokens: VideoTokens, channel_ratio: float) -> Likeness:
    """`Likeness` of the living tokens; in a policy with both VidCom² stages it is computed once per video."""
    return tokens.once(measure, channel_ratio)


def measure(
    features: Float[Tensor, "frames tokens dim"],
    keep: Bool[Tensor, "frames tokens"],
    weight: Float[Tensor, "frames tokens"],
    channel_ratio: float,
) -> Likeness:
    """`Likeness` in float32; a token counts in the centres as often as the originals it stands for."""
    mass = torch.where(keep, weight.float(), 0.0).unsqueeze(-1)
    channels = steady_channels(features, keep, mass, channel_ratio)
    frames, tokens, _ = features.shape
    unit = torch.empty(frames, tokens, len(channels), device=features.device)
    parts = blocks(frames, unit[0].numel())
    # block by block: whole copies of the features would take several times the memory of the video
    for some in parts:
        picked = features[some].index_select(-1, channels)
        unit[some] = normalize(torch.where(keep[some].unsqueeze(-1), picked, 0.0).float(), dim=-1)
    frame_mass = mass.sum(1, keepdim=True)
    frame_sum = torch.cat([(unit[some] * mass[some]).sum(1, keepdim=True) for some in parts])
    frame_centre = frame_sum / frame_mass.clamp(min=1.0)
    video_centre = frame_sum.sum(0, keepdim=True) / frame_mass.sum().clamp(min=1.0)
    return Likeness(
        video=torch.cat([_kernel(unit[some], video_centre) for some in parts]),
        frame=torch.cat([_kernel(unit[some], frame_centre[some]) for some in parts]),
    )


def steady_channels(
    features: Float[Tensor, "frames tokens dim"],
    keep: Bool[Tensor, "frames tokens"],
    mass: Float[Tensor, "frames tokens 1"],
    channel_ratio: float,
) -> Int[Tensor, " channels"]:
    """The `channel_ratio` of the channels that vary least over the video, ascending; ties to the lower."""
    total = mass.sum().clamp(min=1.0)
    variances = []
    for some in blocks(features.shape[-1], keep.numel(), multiple=CHANNELS):
        living = torch.where(keep.unsqueeze(-1), features[..., some], 0.0).float()
        mean = (living * mass).sum((0, 1)) / total
        variances.append(((living - mean).square_().mul_(mass)).sum((0, 1)) / total)
    count = max(1, int(channel_ratio * features.shape[-1]))
    return torch.argsort(torch.cat(variances), stable=True)[:count].sort().values


def _kernel(
    unit: Float[Tensor, "frames tokens channels"], centre: Float[Tensor, "#frames 1 channels"]
) -> Float[Tensor, "frames tokens"]:
    """Sum of five Gaussians of the distance to the centre."""
    distance = (unit - centre).square().sum(-1)
    bandwidths = distance.new_tensor(BANDWIDTHS)
    return torch.exp(-distance.unsqueeze(-1) / (2 * bandwidths)).sum(-1)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("vidcom2.frame-budget", FrameBudget)
    register("vidcom2.token-score", TokenScore)
