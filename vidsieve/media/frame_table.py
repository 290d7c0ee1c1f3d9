"""When the frames of a video are shown, found from its packets without decoding one of them, and which to take.

A packet is a frame in nearly every file. Where it is not (no timestamps, hidden reference frames), the
table is made by decoding once, keeping nothing.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Int64

from vidsieve.framework.errors import MediaError, UsageError

UNKNOWN_FPS = Fraction(24)  # what transformers assumes of a video that does not say
DEFAULT_FRAMES = 16
MAX_FRAMES_BY_FPS = 768  # the ceiling of Qwen2-VL's own processor
LOST_SHARE, LOST_S = 0.05, 0.5  # a file without a frame count may end this much before its header says


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Frames of a video in the order they are shown.

    pts: time of each in ticks of `time_base` seconds.  end: ticks at which the last one goes.
    keyframes: pts of those that can be decoded alone; empty if seeking cannot be relied upon.
    """

    pts: Int64[np.ndarray, " frames"]
    end: int
    keyframes: Int64[np.ndarray, " keyframes"]
    time_base: Fraction
    fps: Fraction

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        return (self.end - int(self.pts[0])) * self.time_base


def table_from_packets(container: InputContainer, stream: VideoStream, path: Path) -> FrameTable | None:
    """Read the table from packets; None where they do not say. Raises MediaError for a file cut short."""
    shown: list[tuple[int | None, int, bool]] = []
    packets, end_s, torn = 0, Fraction(0), False
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base:
            end_s = max(end_s, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream.index != stream.index:
            continue
        packets, torn = packets + 1, packet.is_corrupt
        if not packet.is_discard:
            shown.append((packet.pts, packet.duration or 0, packet.is_keyframe))
    times = [pts for pts, _, _ in shown if pts is not None]
    _check_whole(container, stream, path, packets, end_s, torn)
    if not times or len(set(times)) != len(shown) or stream.time_base is None:
        return None
    last = max(shown)
    keyframes = sorted(pts for pts, _, key in shown if key and pts is not None)
    fps = source_fps(stream)
    step = last[1] or max(1, round(1 / fps / stream.time_base))
    return FrameTable(
        np.array(sorted(times), dtype=np.int64),
        max(times) + step,
        np.array(keyframes, dtype=np.int64),
        stream.time_base,
        fps,
    )


def table_from_frames(container: InputContainer, stream: VideoStream) -> FrameTable | None:
    """Read the table by decoding everything and keeping nothing; None for a video without a frame.

    Times are those of the frames where all have one, else frame numbers over the frame rate.
    """
    times = [frame.pts for frame in container.decode(stream)]
    if not times:
        return None
    fps, none = source_fps(stream), np.empty(0, dtype=np.int64)
    if stream.time_base is None or any(t is None for t in times) or len(set(times)) != len(times):
        return FrameTable(np.arange(len(times), dtype=np.int64), len(times), none, 1 / fps, fps)
    step = max(1, round(1 / fps / stream.time_base))
    ticks = np.array(times, dtype=np.int64)
    return FrameTable(ticks, int(ticks.max()) + step, none, stream.time_base, fps)


def source_fps(stream: VideoStream) -> Fraction:
    """Read the frames per second of the source; 24 where the file does not say."""
    return stream.average_rate or stream.guessed_rate or stream.base_rate or UNKNOWN_FPS


def check_request(frames: int | None, fps: float | int | None, max_frames: int | None) -> None:
    """Refuse more than one of `frames` and `fps`, and any that is not positive. Raises UsageError."""
    if frames is not None and fps is not None:
        raise UsageError(f"read_video: frames or fps, not both; got frames={frames} and fps={fps}")
    for name, value in (("frames", frames), ("fps", fps), ("max_frames", max_frames)):
        if value is not None and not (value > 0 and np.isfinite(value)):
            raise UsageError(f"read_video: {name} must be above 0, got {value}")


def sample_by_count(total: int, count: int) -> Int64[np.ndarray, " frames"]:
    """Spread `count` indices evenly over `total` frames, the first always 0; all of them if there are fewer.

    index k is floor(k * total / count), as transformers' `default_sample_indices_fn` has it.
    """
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // count


def sample_by_fps(table: FrameTable, fps: float | int, max_frames: int | None) -> Int64[np.ndarray, " frames"]:
    """List the frames on screen at `fps` even moments a second, never more than the video has or `max_frames`.

    At a constant frame rate these are transformers' indices; at a variable one, equal times and not equal
    counts lie between them, so a long still is taken more than once.
    """
    total = len(table.pts)
    wanted = int(table.duration * Fraction(fps).limit_denominator(1_000_000))
    count = max(1, min(wanted, total, max_frames or MAX_FRAMES_BY_FPS))
    length = table.end - int(table.pts[0])
    moments = int(table.pts[0]) + np.arange(count, dtype=np.int64) * length // count
    return np.searchsorted(table.pts, moments, side="right").astype(np.int64) - 1


def choose_frames(
    table: FrameTable, frames: int | None, fps: float | int | None, max_frames: int | None
) -> Int64[np.ndarray, " frames"]:
    """Choose the indices of the frames to take, in order: by `fps`, else by count (16 unless given)."""
    if fps is not None:
        return sample_by_fps(table, fps, max_frames)
    wanted = DEFAULT_FRAMES if frames is None else frames
    return sample_by_count(len(table.pts), min(wanted, max_frames or wanted))


def _check_whole(
    container: InputContainer, stream: VideoStream, path: Path, packets: int, end_s: Fraction, torn: bool
) -> None:
    """Refuse a file that ends before its header says; `torn` if the last packet is not whole."""
    promised_s = Fraction(container.duration or 0, av.time_base)
    if stream.frames:
        # Fewer frames alone are no proof: an edit list hides some that the header still counts.
        if stream.duration and stream.time_base:
            promised_s = (stream.duration + (stream.start_time or 0)) * stream.time_base
        cut = packets < stream.frames and (torn or promised_s - end_s > 1 / source_fps(stream) / 2)
    else:
        cut = promised_s - end_s > max(LOST_S, LOST_SHARE * promised_s)
    if cut:
        promised = f"{stream.frames} frames" if stream.frames else f"{float(promised_s):.2f} s"
        raise MediaError(
            f"{path}: the header promises {promised}, but the file ends after {packets} frames, "
            f"{float(end_s):.2f} s: it was cut short; copy or download it again"
        )
