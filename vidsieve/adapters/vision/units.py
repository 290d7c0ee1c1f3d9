"""Step 1 on a model: the units that a plan leaves out never reach the vision tower.

A unit is what a tower encodes by itself: a frame, or a temporal patch of two. A family says how its pixels fall into
units, and what its tower is given when only some are left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.errors import InputError

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Units:
    """How a family's pixels fall into units that its vision tower encodes independently of each other.

    `pixels(config, inputs)` gives each video as [units frames channels height width]; `without(inputs, keeps)` the
    inputs of the tower with only the units that each video keeps, one mapping for each call of the tower.
    """

    pixels: Callable[[Any, Inputs], list[Any]]
    without: Callable[[Inputs, Sequence[Any]], list[Inputs]]


def _grid_pixels(config: Any, inputs: Inputs) -> list[Any]:
    """Patches in the order of the Qwen2-VL processor, put together to frames again."""
    vision = config.vision_config
    merge, patch, deep = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    videos = []
    for part, (time, height, width) in zip(_grid_parts(inputs), inputs["video_grid_thw"].tolist(), strict=True):
        blocks = part.view(time, height // merge, width // merge, merge, merge, -1, deep, patch, patch)
        frames = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
        videos.append(frames.reshape(time, deep, -1, height * patch, width * patch))
    return videos


def _grid_parts(inputs: Inputs) -> list[Any]:
    """The patches of each video."""
    return list(inputs["pixel_values_videos"].split(inputs["video_grid_thw"].prod(-1).tolist()))


def _grid_without(inputs: Inputs, keeps: Sequence[Any]) -> list[Inputs]:
    """All videos in one call: fewer patches, and as many steps fewer in the grid."""
    grid = inputs["video_grid_thw"].clone()
    pairs = zip(_grid_parts(inputs), keeps, strict=True)
    parts = [part.unflatten(0, (len(keep), -1))[keep].flatten(0, 1) for part, keep in pairs]
    for index, keep in enumerate(keeps):
        grid[index, 0] = int(keep.sum())
    return [{**inputs, "pixel_values_videos": _joined(parts), "video_grid_thw": grid}]


def _joined(parts: Sequence[Any]) -> Any:
    import torch

    return torch.cat(list(parts))


def _frame_pixels(config: Any, inputs: Inputs) -> list[Any]:
    """Every frame is a unit of one."""
    return [video[:, None] for video in inputs["pixel_values_videos"]]


def _frame_without(inputs: Inputs, keeps: Sequence[Any]) -> list[Inputs]:
    """One call a video: they may keep different numbers of frames."""
    videos = inputs["pixel_values_videos"]
    return [{**inputs, "pixel_values_videos": videos[i : i + 1, keep]} for i, keep in enumerate(keeps)]


GRID_UNITS = Units(_grid_pixels, _grid_without)
"""Temporal patches of models that come with `video_grid_thw` and flat patches."""
FRAME_UNITS = Units(_frame_pixels, _frame_without)
"""Frames of models that come with [videos frames channels height width]."""


def require_pixels(inputs: Inputs) -> None:
    """Raises InputError when the caller computed the features: then there is nothing to leave out of the tower."""
    if inputs.get("pixel_values_videos") is None:
        raise InputError(
            "mm_encoder_outputs: the policy chooses units before the vision tower, which has run already; pass "
            "pixel_values_videos instead, or use a policy without reduce_frames."
        )
