"""Frames to the inputs of the LLaVA video models: `pixel_values_videos` [frames 3 height width], normalised.

LLaVA-OneVision (arXiv:2408.03326) squeezes each frame into a square; LLaVA-NeXT-Video resizes the shorter
edge and crops the centre. The rules are those of transformers' `LlavaOnevisionVideoProcessor` and
`LlavaNextVideoVideoProcessor` (transformers 5.23, Apache-2.0).
"""

import math
from collections.abc import Sequence

from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from vidsieve.media.pixels import CLIP_MEAN, CLIP_STD, RESCALE_FACTOR, normalise


def llava_pixels(
    frames: Shaped[Tensor, "*videos frames 3 height width"],
    *,
    image_mean: Sequence[float] = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
    rescale_factor: float = RESCALE_FACTOR,
) -> Float[Tensor, "*videos frames 3 height width"]:
    """`pixel_values_videos` from frames of their final size; pixel values are 0 to 255, uint8 or float."""
    return normalise(frames, image_mean, image_std, rescale_factor=rescale_factor)


def short_edge_size(height: int, width: int, short_edge: int) -> tuple[int, int]:
    """(height, width) with the shorter edge at `short_edge` pixels, the longer one rounded down."""
    if height <= width:
        return short_edge, int(short_edge * width / height)
    return int(short_edge * height / width), short_edge


def centre_crop(
    frames: UInt8[Tensor, "frames 3 height width"], height: int, width: int
) -> UInt8[Tensor, "frames 3 {height} {width}"]:
    """The central `height` x `width` pixels; black borders where a frame is smaller than that."""
    add_h, add_w = max(0, height - frames.shape[-2]), max(0, width - frames.shape[-1])
    if add_h or add_w:
        border = (add_w // 2, math.ceil(add_w / 2), add_h // 2, math.ceil(add_h / 2))
        frames = functional.pad(frames, border)
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]
