"""How much each visual token resembles its video and its frame: the measure both VidCom² stages read.

    y = x' / |x'|          x' are the half of the channels that vary least over the video
    g = mean of y          over the video, or over the frame
    K = sum over a of exp(-|y - g|² / 2a),  a in {1/8, 1/4, 1/2, 1, 2}      high = redundant

Source: VidCom² (arXiv 2505.14454) as its code computes it (github.com/xuyang-liu16/VidCom2 at 944a17d,
Apache-2.0). The paper has cosine similarity over all channels; the published numbers come from the code.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.records import VideoTokens

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
    living = torch.where(keep.unsqueeze(-1), features, 0.0).float()
    channels = steady_channels(living, mass, channel_ratio)
    unit = normalize(living.index_select(-1, channels), dim=-1)
    weighted = unit * mass
    frame_mass = mass.sum(1, keepdim=True)
    frame_sum = weighted.sum(1, keepdim=True)
    frame_centre = frame_sum / frame_mass.clamp(min=1.0)
    video_centre = frame_sum.sum(0, keepdim=True) / frame_mass.sum().clamp(min=1.0)
    return Likeness(video=_kernel(unit, video_centre), frame=_kernel(unit, frame_centre))


def steady_channels(
    living: Float[Tensor, "frames tokens dim"], mass: Float[Tensor, "frames tokens 1"], channel_ratio: float
) -> Int[Tensor, " channels"]:
    """The `channel_ratio` of the channels that vary least over the video, ascending; ties to the lower."""
    total = mass.sum().clamp(min=1.0)
    mean = (living * mass).sum((0, 1)) / total
    variance = ((living - mean).square() * mass).sum((0, 1)) / total
    count = max(1, int(channel_ratio * living.shape[-1]))
    return torch.argsort(variance, stable=True)[:count].sort().values


def _kernel(
    unit: Float[Tensor, "frames tokens channels"], centre: Float[Tensor, "#frames 1 channels"]
) -> Float[Tensor, "frames tokens"]:
    """Sum of five Gaussians of the distance to the centre."""
    distance = (unit - centre).square().sum(-1)
    bandwidths = distance.new_tensor(BANDWIDTHS)
    return torch.exp(-distance.unsqueeze(-1) / (2 * bandwidths)).sum(-1)
