"""The frames of a picture: one for each unit of the vision tower, evenly thinned where there are too many."""

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vidsieve.framework.errors import UsageError

MOST_UNITS = 96
"""Units that a page shows; more would make a file that opens slowly."""
GREY = 118


def unit_frames(frames: Any, units: int) -> UInt8[np.ndarray, "units height width 3"] | None:
    """The first frame of each of `units` units; None where no frames came.

    `frames` are all that the model was given: a Clip, or RGB from 0 to 255 as uint8 [frames 3 height width] or
    [frames height width 3].

    Raises:
        UsageError: frames of another form, or not as many as the units stand for.
    """
    if frames is None:
        return None
    given = getattr(frames, "frames", frames)
    array = given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 4 or array.dtype != np.uint8 or 3 not in (array.shape[1], array.shape[-1]) or not array.size:
        raise UsageError(
            "frames: must be RGB from 0 to 255, uint8 of (frames, 3, height, width), got "
            f"{array.dtype} of {array.shape}."
        )
    if array.shape[-1] != 3:
        array = array.transpose(0, 2, 3, 1)
    each = -(-len(array) // units)
    if -(-len(array) // each) != units:
        raise UsageError(
            f"frames: the report is of {units} units (frames, or patches of two), which {len(array)} frames do not "
            "make; give the frames that the model was given."
        )
    return np.ascontiguousarray(array[::each])


def unit_times(frames: Any, times_s: Any, units: int) -> Float[np.ndarray, " units"] | None:
    """Seconds of each unit's first frame, where they are known: given, or those of a Clip."""
    given = getattr(frames, "timestamps_s", None) if times_s is None else times_s
    if given is None:
        return None
    seconds = torch.as_tensor(given).double().cpu().numpy().reshape(-1)
    each = -(-len(seconds) // units)
    return seconds[::each] if each and len(seconds[::each]) == units else None


def chosen_units(units: int, most: int = MOST_UNITS) -> Int[np.ndarray, " shown"]:
    """The units that are shown: all, or `most` of them evenly spread, the first and the last among them.

    Their distances differ by one, so that what a policy does to every fourth frame is not met every time.
    """
    return np.round(np.linspace(0, units - 1, min(units, most))).astype(np.int64)


def blank(grid: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """A grey frame for where none was given."""
    return np.full((grid[0] * 24, grid[1] * 24, 3), GREY, dtype=np.uint8)


def page_width(count: int) -> int:
    """Most pixels of a frame's width on a page of `count` frames, so that the file stays small."""
    return 400 if count <= 24 else 300 if count <= 48 else 210


def fitted(frame: UInt8[np.ndarray, "height width 3"], width: int) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """The frame made smaller, if it is wider than `width` (or three times as high)."""
    scale = min(1.0, width / frame.shape[1], 3 * width / frame.shape[0])
    if scale == 1.0:
        return frame
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def jpeg(frame: UInt8[np.ndarray, "height width 3"], quality: int = 74) -> bytes:
    """A JPEG file of the frame."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
