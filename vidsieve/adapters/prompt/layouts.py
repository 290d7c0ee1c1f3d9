"""Where the visual tokens of each video lie among the feature rows that a model's vision side makes.

Pure arithmetic on shapes and grids, so that a prompt that does not fit its videos is refused before anything runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vidsieve.framework.errors import InputError

PACES = ("second_per_grid_ts", "video_second_per_grid")
"""Inputs that tell the seconds between the steps of each video's grid, as families call them."""


@dataclass(frozen=True)
class VideoLayout:
    """One video's feature rows: in each frame `lead` rows and `tokens` visual tokens, then `structural` rows.

    `frames` are the units the vision tower encodes (a temporal patch for Qwen-VL). `grid` is (t, h, w) in visual
    tokens. Lead rows (the [CLS] of Video-LLaVA) and structural rows (the newline of LLaVA-OneVision, or a whole image)
    are never removed. `seconds_per_frame` is None if unknown. `alive` marks the visual tokens that the prompt has
    placeholders for, where the family's own processor left some out; None means all.
    """

    frames: int
    tokens: int
    grid: tuple[int, int, int]
    structural: int = 0
    seconds_per_frame: float | None = None
    lead: int = 0
    alive: Any = field(default=None, compare=False)

    @property
    def visual(self) -> int:
        """Rows that a policy may remove."""
        return self.frames * self.tokens

    @property
    def rows(self) -> int:
        """Feature rows in all."""
        return self.visual + self.frames * self.lead + self.structural

    @cached_property
    def placeholders(self) -> int:
        """Placeholders in the prompt: one a feature row, without the visual tokens that are not `alive`."""
        return self.rows - (0 if self.alive is None else self.visual - int(self.alive.sum()))


def grid_layouts(
    config: Any, inputs: Mapping[str, Any], *, merge: Sequence[int] | None = None, temporal: int = 1
) -> list[VideoLayout]:
    """Layouts of models that come with `video_grid_thw` in patches: Qwen-VL and its kin.

    Args:
        merge: for each video, how many patches along an edge become one token; by default as the configuration says.
        temporal: how many steps of the grid in time become one.
    """
    grid = inputs.get("video_grid_thw")
    if grid is None:
        raise InputError(
            "model inputs: a video came without video_grid_thw, so its shape is unknown; pass video_grid_thw as the "
            "processor made it."
        )
    seconds = next((inputs[name] for name in PACES if inputs.get(name) is not None), None)
    layouts = []
    for index, (time, height, width) in enumerate(_rows(grid)):
        side = config.vision_config.spatial_merge_size if merge is None else merge[index]
        shape = (time // temporal, height // side, width // side)
        pace = None if seconds is None else float(seconds[index])
        layouts.append(VideoLayout(shape[0], shape[1] * shape[2], shape, seconds_per_frame=pace))
    return layouts


def square_layouts(
    inputs: Mapping[str, Any], side: int, structural: int, lead: int = 0, rows: Sequence[int] | None = None
) -> list[VideoLayout]:
    """Layouts of models that make `side * side` tokens of every frame, whatever its size: the LLaVA family.

    `rows` says how many feature rows each video has, where neither pixels nor features do.
    """
    tokens = side * side
    layouts = []
    for count in _feature_rows(inputs, lead + tokens, structural) if rows is None else rows:
        frames, rest = divmod(count - structural, lead + tokens)
        if rest or frames < 1:
            raise InputError(
                f"mm_encoder_outputs: a video has {count} feature rows, no whole number of frames of {lead + tokens} "
                f"plus {structural} structural rows; pass the output of get_video_features unchanged."
            )
        layouts.append(VideoLayout(frames, tokens, (frames, side, side), structural, lead=lead))
    return layouts


def _feature_rows(inputs: Mapping[str, Any], tokens: int, structural: int) -> list[int]:
    """Feature rows per video, from the pixels' shape or from features that the caller computed."""
    given = (inputs.get("mm_encoder_outputs") or {}).get("video")
    if given is not None:
        return [rows.shape[:-1].numel() for rows in given.pooler_output]
    pixels = inputs["pixel_values_videos"]
    if getattr(pixels, "ndim", 0) != 5:
        raise InputError(
            "pixel_values_videos: expected one tensor [videos frames channels height width], got "
            f"{tuple(getattr(pixels, 'shape', ())) or type(pixels).__name__}; give all videos of a batch the same "
            "number of frames."
        )
    return [pixels.shape[1] * tokens + structural] * pixels.shape[0]


def _rows(grid: Any) -> Sequence[Sequence[int]]:
    """The grid as Python integers: [[t, h, w], ...]."""
    return grid.tolist() if hasattr(grid, "tolist") else [[int(size) for size in row] for row in grid]
