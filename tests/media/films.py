"""Video files for the tests, each frame telling its own number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

HEIGHT, WIDTH = 32, 48


def numbered(count: int) -> torch.Tensor:
    """`count` frames whose colour is their number: red holds it, green its double, the left half is blue."""
    frames = torch.zeros(count, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    frames[:, 0] = torch.arange(count)[:, None, None] % 256
    frames[:, 1] = (2 * torch.arange(count))[:, None, None] % 256
    frames[:, 2, :, : WIDTH // 2] = 200
    return frames


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers of losslessly stored frames."""
    return frames[:, 0, 1, 1].tolist()


def film(
    path: Path,
    count: int = 60,
    *,
    pts: Sequence[int] | None = None,
    keyframe_every: int = 12,
    b_frames: int = 2,
    codec: str = "libx264rgb",
    pix_fmt: str = "rgb24",
    rotation: int | None = None,
    container_options: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """A film of `numbered` frames: lossless, with B-frames and several keyframes; `pts` in 1/100 s."""
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        stream.options = {"crf": "0", "qp": "0"} if codec.startswith("libx264") else {}
        stream.gop_size, stream.max_b_frames = keyframe_every, b_frames
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        voice = out.add_stream("aac", rate=8000) if sound else None
        out.start_encoding()  # so that a film of no frames is a file all the same
        for i, picture in enumerate(numbered(count).permute(0, 2, 3, 1).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[i], Fraction(1, 100)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if voice is not None:
            _speak(out, voice, seconds=count / 25)
    return path


def recording(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as out:
        _speak(out, out.add_stream("aac", rate=8000), seconds=1.0)
    return path


def _speak(out: av.container.OutputContainer, voice: av.AudioStream, seconds: float) -> None:
    samples = np.zeros((1, int(8000 * seconds)), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 8000
    out.mux(voice.encode(frame))
    out.mux(voice.encode())
