"""What segmentation reads: one feature a frame, and segment numbers from places where the video is cut."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.framework.records import VideoTokens


def frame_means(tokens: VideoTokens) -> Float[Tensor, "frames dim"]:
    """Mean of each frame's living tokens by the originals they stand for, float32; zero where none lives."""
    mass = torch.where(tokens.keep, tokens.weight.float(), 0.0)
    living = tokens.living_features
    return torch.einsum("ft,ftd->fd", mass, living) / mass.sum(dim=1, keepdim=True).clamp(min=1e-30)


def living_before(living: Bool[Tensor, "frames *places"]) -> Int[Tensor, "frames *places"]:
    """For each frame (or place of a frame) the nearest earlier frame that lives (there), −1 if there is none."""
    frame = torch.arange(living.shape[0], device=living.device).view(-1, *[1] * (living.dim() - 1))
    last = torch.where(living, frame, -1).cummax(dim=0).values
    return torch.cat([torch.full_like(last[:1], -1), last[:-1]])


def labels_of(cut_before: Bool[Tensor, " frames"]) -> Int[Tensor, " frames"]:
    """Segment numbers, given the frames that begin a segment; what the first frame says does not matter."""
    starts = cut_before.clone()
    starts[0] = False
    return starts.to(torch.int64).cumsum(dim=0)
