"""The frames taken from one video, and where in it they were."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vidsieve.framework.errors import MediaError


@dataclass(frozen=True, eq=False)
class Clip:
    """Sampled frames of one video.

    frames: RGB, 0 to 255.  timestamps_s: seconds after the video's first frame.
    fps: frames per second of the *source*.  duration_s: length of the source in seconds.
    source: the file, or what the frames were made from.  frame_index: index of each frame in the source.
    source_frames: how many frames the source has.
    """

    frames: UInt8[Tensor, "frames 3 height width"]
    timestamps_s: Float[Tensor, " frames"]
    fps: float
    duration_s: float
    source: str
    frame_index: Int[Tensor, " frames"]
    source_frames: int

    @property
    def sampled_fps(self) -> float:
        """Frames per second of the frames that were taken, as transformers' `VideoMetadata` counts it."""
        return len(self.frames) / self.source_frames * self.fps

    @property
    def counted_seconds(self) -> list[float]:
        """Seconds of each frame by its number and the source's mean rate, as `VideoMetadata` counts them."""
        return [index / self.fps for index in self.frame_index.tolist()]

    @classmethod
    def from_frames(
        cls, frames: UInt8[Tensor, "frames 3 height width"], *, fps: float | int, source: str = "frames"
    ) -> "Clip":
        """Make a clip of all of `frames`, made in memory, shown at `fps` frames per second."""
        count = len(frames)
        if count == 0 or not fps > 0:
            raise MediaError(f"{source}: a clip needs a frame and a positive fps, got {count} and {fps}")
        index = torch.arange(count)
        return cls(frames, index / fps, float(fps), count / fps, source, index, count)
