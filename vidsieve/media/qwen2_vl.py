"""Frames to the inputs of Qwen2-VL and Qwen2.5-VL: a flat list of patches and the grid they came from.

The rules are those of transformers' `Qwen2VLVideoProcessor` and `Qwen2VLImageProcessor` (transformers 5.23,
Apache-2.0), of Qwen2-VL (arXiv:2409.12191, section 2.1) and of qwen-vl-utils' `smart_resize`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vidsieve.framework.errors import MediaError
from vidsieve.media.pixels import CLIP_MEAN, CLIP_STD, RESCALE_FACTOR, normalise

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in pixels: multiples of `factor`, area within the bounds, aspect ratio nearly kept.

    `factor` is patch_size x merge_size. A frame thinner than 1:200 raises MediaError. `max_pixels` below
    one merged patch still gives one: a frame cannot be smaller than `factor` x `factor`.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(f"frames: at most {MAX_ASPECT_RATIO}:1 can be resized, got {width} x {height}; crop the video")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def patchify(
    pixels: Float[Tensor, "*videos frames 3 height width"],
    *,
    patch_size: int,
    temporal_patch_size: int,
    merge_size: int,
) -> Float[Tensor, "*videos patches values"]:
    """Normalised frames as rows of one patch each; an odd tail repeats the last frame.

    Rows run over time, then over merged patches (row by row), then over the `merge_size` x `merge_size`
    patches inside one, so that a visual token is that many rows in succession. A row holds
    channel, time within the patch, height, width, in that order.
    """
    *videos, frames, channels, height, width = pixels.shape
    if tail := -frames % temporal_patch_size:
        last = pixels[..., -1:, :, :, :]
        pixels = torch.cat([pixels, last.expand(*videos, tail, channels, height, width)], dim=-4)
    grid_t, grid_h, grid_w = (frames + tail) // temporal_patch_size, height // patch_size, width // patch_size
    split = pixels.reshape(
        -1, grid_t, temporal_patch_size, channels,
        grid_h // merge_size, merge_size, patch_size,
        grid_w // merge_size, merge_size, patch_size,
    )  # fmt: skip
    rows = split.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    values = channels * temporal_patch_size * patch_size**2
    return rows.reshape(*videos, grid_t * grid_h * grid_w, values)


def qwen2_vl_patches(
    frames: Shaped[Tensor, "frames 3 height width"],
    *,
    patch_size: int = 14,
    temporal_patch_size: int = 2,
    merge_size: int = 2,
    image_mean: Sequence[float] = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
    rescale_factor: float = RESCALE_FACTOR,
) -> tuple[Float[Tensor, "patches values"], Int[Tensor, " 3"]]:
    """One video's `pixel_values_videos` and its `grid_thw`, from frames that already have their final size.

    Pixel values are 0 to 255 (uint8 or float); height and width must be multiples of
    patch_size x merge_size, else MediaError. `grid_thw` counts patches before the spatial merge.
    """
    count, _, height, width = frames.shape
    factor = patch_size * merge_size
    if count == 0 or height % factor or width % factor or not height * width:
        raise MediaError(
            f"frames: sides must be multiples of {factor} pixels and at least one frame be there, "
            f"got {count} frames of {width} x {height}; resize with smart_resize and resize_frames first"
        )
    pixels = normalise(frames, image_mean, image_std, rescale_factor=rescale_factor)
    patches = patchify(pixels, patch_size=patch_size, temporal_patch_size=temporal_patch_size, merge_size=merge_size)
    grid = (-(-count // temporal_patch_size), height // patch_size, width // patch_size)
    return patches, torch.tensor(grid, dtype=torch.long)
