"""Read a video file to a Clip through PyAV (FFmpeg), keeping only the requested frames; write frames to a file."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Int64, UInt8
from torch import Tensor

from vidsieve.framework.errors import MediaError, path_fault
from vidsieve.media.clip import Clip
from vidsieve.media.frame_table import FrameTable, check_request, choose_frames, table_from_frames, table_from_packets

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".flv", ".wmv", ".3gp", ".ogv", ".gif"),
)


def read_video(
    path: str | Path,
    *,
    frames: int | None = None,
    fps: float | int | None = None,
    max_frames: int | None = None,
) -> Clip:
    """Read frames of the video at `path`, spread evenly over it: `frames` of them, or `fps` a second.

    With neither, 16 frames. A video with fewer frames gives all it has. `max_frames` caps either way; by
    fps the cap is 768 unless said. Rotation in the file is applied. The same file gives the same frames.

    Raises UsageError for a request that contradicts itself, MediaError for a file that is missing, is no
    video, has no frame, or ends before its header says.
    """
    check_request(frames, fps, max_frames)
    return _read(path, lambda table: choose_frames(table, frames, fps, max_frames))


def read_ends(path: str | Path, *, frames: int | None = None, fps: float | int | None = None) -> Clip:
    """Read the first and the last of the frames that `read_video` takes, without decoding those between them.

    Raises as `read_video` does, so that a file cut short or unreadable shows before its frames are needed.
    """
    check_request(frames, fps, None)

    def ends(table: FrameTable) -> Int64[np.ndarray, " ends"]:
        index = choose_frames(table, frames, fps, None)
        return index[[0, -1]] if len(index) > 1 else index

    return _read(path, ends)


def _read(path: str | Path, choose: Callable[[FrameTable], Int64[np.ndarray, " chosen"]]) -> Clip:
    """Read the frames of the video at `path` that `choose` takes from the times of all."""
    file = _existing_file(path)
    with _opened(file) as (container, stream):
        table = table_from_packets(container, stream, file)
    if table is not None:
        index = choose(table)
        with _opened(file) as (container, stream):
            pictures = _at_times(container, stream, table, index)
        if pictures is not None:
            return _clip(file, table, index, pictures)
    with _opened(file) as (container, stream):
        table = table_from_frames(container, stream)
    if table is None:
        raise MediaError(f"{file}: no frame could be decoded; check the file with a player")
    index = choose(table)
    with _opened(file) as (container, stream):
        pictures = _at_positions(container, stream, index)
    return _clip(file, table, index, pictures)


def list_videos(folder: str | Path) -> list[Path]:
    """List the video files in `folder` and the folders in it, sorted by their path; hidden ones are left out."""
    if (fault := path_fault(folder)) is not None:
        raise MediaError(f"folder of videos {str(folder)!r}: {fault}.")
    root = Path(folder)
    if not root.is_dir():
        raise MediaError(f"{root}: a folder of videos was asked for, it is not there; check the path")
    # a link to nothing is listed, so that reading it raises
    found = [f for f in root.rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES and (f.is_file() or f.is_symlink())]
    videos = sorted(f for f in found if not any(part.startswith(".") for part in f.relative_to(root).parts))
    if not videos:
        raise MediaError(f"{root}: no video in this folder; known are {', '.join(VIDEO_SUFFIXES)}")
    return videos


def _existing_file(path: str | Path) -> Path:
    if (fault := path_fault(path)) is not None:
        raise MediaError(f"video {str(path)!r}: {fault}.")
    file = Path(path)
    if file.is_dir():
        raise MediaError(f"{file}: a video file was asked for, this is a folder; name one file in it")
    if not file.exists():
        raise MediaError(f"{file}: no such file; check the path")
    return file


@contextmanager
def _opened(file: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container and its first video stream; FFmpeg's errors become MediaError."""
    try:
        with av.open(str(file)) as container:
            pictures = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not pictures:
                kinds = sorted({s.type for s in container.streams})
                raise MediaError(f"{file}: no video stream, only {', '.join(kinds) or 'nothing'}; choose another file")
            pictures[0].thread_type = "AUTO"
            yield container, pictures[0]
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{file}: not a readable video ({reason}); is it complete, and a video?") from error


def _at_times(
    container: InputContainer, stream: VideoStream, table: FrameTable, index: Int64[np.ndarray, " chosen"]
) -> dict[int, UInt8[np.ndarray, "height width 3"]] | None:
    """Decode the chosen frames by index, leaping to keyframes on the way; None if the file's times do not hold."""
    if len(table.keyframes) == 0:
        return None
    pictures: dict[int, np.ndarray] = {}
    reached, decoder = int(table.keyframes[0]), container.decode(stream)
    for i in np.unique(index):
        wanted = int(table.pts[i])
        before = table.keyframes[table.keyframes <= wanted]
        if len(before) and before[-1] > reached:
            container.seek(int(before[-1]), stream=stream)
            decoder = container.decode(stream)
        frame = next((f for f in decoder if f.pts is None or f.pts >= wanted), None)
        if frame is None or frame.pts != wanted:
            return None
        reached = wanted
        pictures[int(i)] = _upright(frame)
    return pictures


def _at_positions(
    container: InputContainer, stream: VideoStream, index: Int64[np.ndarray, " chosen"]
) -> dict[int, UInt8[np.ndarray, "height width 3"]]:
    """Decode the chosen frames by index, from the start."""
    wanted = set(index.tolist())
    numbered = enumerate(container.decode(stream))
    return {i: _upright(frame) for i, frame in numbered if i in wanted}


def _upright(frame: VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
    """Convert the frame to RGB, turned as the file says (by quarter turns)."""
    turns = round(frame.rotation / 90) % 4
    return np.rot90(frame.to_ndarray(format="rgb24"), turns)


def _clip(
    file: Path,
    table: FrameTable,
    index: Int64[np.ndarray, " chosen"],
    pictures: dict[int, UInt8[np.ndarray, "height width 3"]],
) -> Clip:
    shapes = {p.shape for p in pictures.values()}
    if len(shapes) > 1:
        raise MediaError(f"{file}: the frame size changes within the video {sorted(shapes)}; re-encode it")
    frames = torch.from_numpy(np.stack([pictures[int(i)] for i in index]).transpose(0, 3, 1, 2).copy())
    return Clip(
        frames=frames,
        timestamps_s=_seconds(table, index),
        fps=float(table.fps),
        duration_s=float(table.duration),
        source=str(file),
        frame_index=torch.from_numpy(index),
        source_frames=len(table.pts),
    )


def _seconds(table: FrameTable, index: Int64[np.ndarray, " chosen"]) -> Tensor:
    ticks = torch.from_numpy(table.pts[index] - table.pts[0])
    return (ticks.double() * float(table.time_base)).float()


def write_video(
    path: str | Path,
    frames: UInt8[Tensor, "frames 3 height width"],
    fps: float | int,
    *,
    crf: int = 18,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    lossless: bool = False,
) -> Path:
    """Write RGB `frames` at `fps` frames per second to `path`; its suffix chooses the container.

    `crf` is the encoder's quality, 0 best to 51. `lossless` keeps every value: RGB H.264 (`libx264rgb`,
    quantiser 0), whatever the three settings before it say. The file appears under its name only when it
    is complete. Raises MediaError for what cannot be encoded.
    """
    target = Path(path)
    if lossless:
        codec, pix_fmt, crf = "libx264rgb", "rgb24", 0
    _check(target, frames, fps, pix_fmt)
    part = target.with_name(f".{target.stem}-{uuid.uuid4().hex}{target.suffix}")
    try:
        _encode(part, frames, fps, crf, codec, pix_fmt)
        os.replace(part, target)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{target}: could not be written as {codec}, {pix_fmt} ({error}); check folder, suffix and codec"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _check(target: Path, frames: UInt8[Tensor, "frames 3 height width"], fps: float | int, pix_fmt: str) -> None:
    count, _, height, width = frames.shape
    if not count or not height * width or not fps > 0:
        raise MediaError(
            f"{target}: at least one frame and fps above 0 are needed, "
            f"got {count} frames of {width} x {height} at {fps} fps"
        )
    if pix_fmt == "yuv420p" and (height % 2 or width % 2):
        raise MediaError(
            f"{target}: yuv420p needs even sides, got {width} x {height}; pad the frames or use lossless=True"
        )


def _encode(
    part: Path,
    frames: UInt8[Tensor, "frames 3 height width"],
    fps: float | int,
    crf: int,
    codec: str,
    pix_fmt: str,
) -> None:
    with av.open(str(part), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001 * 60))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt, stream.options = pix_fmt, {"crf": str(crf)}
        for picture in frames.cpu().permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
