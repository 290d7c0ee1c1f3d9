"""Frames to a video file, whole or not at all."""

import os
import uuid
from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from vidsieve.framework.errors import MediaError


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
