"""Which frames of a video to take."""

from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from vidsieve.framework.errors import UsageError
from vidsieve.media.frame_table import FrameTable

DEFAULT_FRAMES = 16
MAX_FRAMES_BY_FPS = 768  # the ceiling of Qwen2-VL's own processor


def check_request(frames: int | None, fps: float | int | None, max_frames: int | None) -> None:
    """UsageError unless at most one of `frames` and `fps` is given and all are positive."""
    if frames is not None and fps is not None:
        raise UsageError(f"read_video: frames or fps, not both; got frames={frames} and fps={fps}")
    for name, value in (("frames", frames), ("fps", fps), ("max_frames", max_frames)):
        if value is not None and not (value > 0 and np.isfinite(value)):
            raise UsageError(f"read_video: {name} must be above 0, got {value}")


def sample_by_count(total: int, count: int) -> Int64[np.ndarray, " frames"]:
    """`count` indices spread evenly over `total` frames, the first always 0; all of them if there are fewer.

    index k is floor(k * total / count), as transformers' `default_sample_indices_fn` has it.
    """
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // count


def sample_by_fps(table: FrameTable, fps: float | int, max_frames: int | None) -> Int64[np.ndarray, " frames"]:
    """The frames on screen at `fps` even moments a second, never more than the video has or `max_frames`.

    At a constant frame rate these are transformers' indices; at a variable one, equal times and not equal
    counts lie between them, so a long still is taken more than once.
    """
    total = len(table.pts)
    asked = int(table.duration * Fraction(fps).limit_denominator(1_000_000))
    count = max(1, min(asked, total, max_frames or MAX_FRAMES_BY_FPS))
    length = table.end - int(table.pts[0])
    moments = int(table.pts[0]) + np.arange(count, dtype=np.int64) * length // count
    return np.searchsorted(table.pts, moments, side="right").astype(np.int64) - 1


def choose_frames(
    table: FrameTable, frames: int | None, fps: float | int | None, max_frames: int | None
) -> Int64[np.ndarray, " frames"]:
    """Indices of the frames to take, in order: by `fps`, else by count (16 unless asked otherwise)."""
    if fps is not None:
        return sample_by_fps(table, fps, max_frames)
    wanted = DEFAULT_FRAMES if frames is None else frames
    return sample_by_count(len(table.pts), min(wanted, max_frames or wanted))
