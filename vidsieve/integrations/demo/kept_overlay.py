"""Pictures of what a policy kept: each frame as it is where its visual tokens stayed, dark where they went."""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

DIMMED = 0.2
"""Brightness of what was dropped."""


def kept_overlay(
    frames: UInt8[Tensor, "frames 3 height width"], keep: Bool[Tensor, "units tokens"], rows: int, columns: int
) -> UInt8[Tensor, "units height width 3"]:
    """Dim what was dropped in the first frame of every unit that the vision tower encodes.

    A unit's tokens are `rows` x `columns`, row by row; each stands for its rectangle of the frame. For merged tokens
    that is the place of the target.
    """
    units = len(keep)
    shown = frames[torch.arange(units) * len(frames) // units]
    mask = keep.cpu().view(units, 1, rows, columns).float()
    bright = torch.nn.functional.interpolate(mask, size=shown.shape[-2:], mode="nearest")
    dimmed = shown.float() * (DIMMED + (1 - DIMMED) * bright)
    return dimmed.round().to(torch.uint8).permute(0, 2, 3, 1)
