"""Arithmetic on frames, in torch alone: resize, crop, normalise, cut into patches.

The results equal, bit for bit, those of the torchvision transforms that transformers' processors use
(transformers 5.23, Apache-2.0: `image_processing_backends.TorchvisionBackend`). Two facts make that so:
`interpolate` with `antialias=True` works on uint8 itself on the CPU, and the scaling by 1/255 is folded
into mean and standard deviation *before* they touch the pixels.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from vidsieve.framework.errors import MediaError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
RESCALE_FACTOR = 1 / 255
MAX_ASPECT_RATIO = 200


def resize_frames(
    frames: UInt8[Tensor, "frames 3 height width"], height: int, width: int, *, mode: str = "bicubic"
) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    """Resize `frames` with antialiasing to `height` x `width` pixels; `mode` is bicubic, bilinear or lanczos.

    As in transformers, bicubic stands in for lanczos where torch has none: on GPUs, and before torch 2.12.
    """
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.device.type != "cpu":
        # The accelerators' kernels know no uint8; bicubic overshoots, hence the clamp.
        mode = "bicubic" if mode == "lanczos" else mode
        resized = functional.interpolate(frames.float(), (height, width), mode=mode, antialias=True)
        return resized.clamp_(0, 255).round_().to(torch.uint8)
    try:
        return functional.interpolate(frames, (height, width), mode=mode, antialias=True)
    except (NotImplementedError, ValueError):
        if mode != "lanczos":
            raise
        return functional.interpolate(frames, (height, width), mode="bicubic", antialias=True)


def normalise(
    frames: Shaped[Tensor, "*videos frames 3 height width"],
    image_mean: Sequence[float] | None = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
    *,
    rescale_factor: float = RESCALE_FACTOR,
) -> Float[Tensor, "*videos frames 3 height width"]:
    """Compute (frames * rescale_factor - mean) / std per channel, float32; pixel values are 0 to 255.

    Without `image_mean` only frames * rescale_factor.
    """
    if image_mean is None:
        return frames * rescale_factor
    mean = torch.tensor(tuple(image_mean), device=frames.device) * (1.0 / rescale_factor)
    std = torch.tensor(tuple(image_std), device=frames.device) * (1.0 / rescale_factor)
    return frames.to(torch.float32).sub(mean[:, None, None]).div_(std[:, None, None])


def short_edge_size(height: int, width: int, short_edge: int) -> tuple[int, int]:
    """Compute (height, width) with the shorter edge at `short_edge` pixels, the longer one rounded down."""
    if height <= width:
        return short_edge, int(short_edge * width / height)
    return int(short_edge * height / width), short_edge


def centre_crop(
    frames: UInt8[Tensor, "frames 3 height width"], height: int, width: int
) -> UInt8[Tensor, "frames 3 {height} {width}"]:
    """Crop the central `height` x `width` pixels; black borders where a frame is smaller than that."""
    add_h, add_w = max(0, height - frames.shape[-2]), max(0, width - frames.shape[-1])
    if add_h or add_w:
        border = (add_w // 2, math.ceil(add_w / 2), add_h // 2, math.ceil(add_h / 2))
        frames = functional.pad(frames, border)
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]


def covered(
    frames: UInt8[Tensor, "frames 3 height width"], short_edge: int, height: int, width: int
) -> UInt8[Tensor, "frames 3 rows columns"]:
    """Cut out, at the frames' own size, what is left after resizing to `short_edge` and cropping the centre."""
    resized_height, resized_width = short_edge_size(frames.shape[-2], frames.shape[-1], short_edge)
    rows = round(height * frames.shape[-2] / resized_height)
    columns = round(width * frames.shape[-1] / resized_width)
    return centre_crop(frames, max(1, rows), max(1, columns))


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    frames: int | None = None,
    temporal_patch_size: int = 1,
) -> tuple[int, int]:
    """Compute (height, width) in pixels: multiples of `factor`, area within the bounds, aspect ratio nearly kept.

    `factor` is patch_size x merge_size. With `frames`, the bounds are those of all frames of a video together
    (Qwen3-VL, GLM-4V), rounded to whole temporal patches. A frame thinner than 1:200 raises MediaError. `max_pixels`
    below one merged patch still gives one: a frame cannot be smaller than `factor` x `factor`.
    """
    count, whole = 1, 1
    if frames is not None:
        count = max(frames, temporal_patch_size)  # a video shorter than a temporal patch is filled up to one
        whole = round(count / temporal_patch_size) * temporal_patch_size
        if height < factor or width < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(f"frames: at most {MAX_ASPECT_RATIO}:1 can be resized, got {width} x {height}; crop the video")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if whole * new_height * new_width > max_pixels:
        shrink = math.sqrt(count * height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif whole * new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (count * height * width))
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
    """Cut normalised frames into rows of one patch each; an odd tail repeats the last frame.

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


def grid_patches(
    frames: Shaped[Tensor, "frames 3 height width"],
    *,
    patch_size: int = 14,
    temporal_patch_size: int = 2,
    merge_size: int = 2,
    image_mean: Sequence[float] | None = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
    rescale_factor: float = RESCALE_FACTOR,
) -> tuple[Float[Tensor, "patches values"], Int[Tensor, " 3"]]:
    """Make one video's `pixel_values_videos` and its `grid_thw`, from frames that already have their final size.

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


def write_text(frame: UInt8[Tensor, "3 height width"], text: str, font: Path) -> UInt8[Tensor, "3 height width"]:
    """Write `text` in the upper left corner of `frame`, black with a white rim, a tenth of the shorter edge high."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
    size = int(min(picture.size) * 0.1)
    ImageDraw.Draw(picture).text(
        (0, 0),
        text,
        font=ImageFont.truetype(str(font), size),
        fill=(0, 0, 0),
        stroke_width=int(size * 0.1),
        stroke_fill=(255, 255, 255),
    )
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
