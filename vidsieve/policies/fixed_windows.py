"""Segments of the same number of frames."""

from collections.abc import Callable

import torch

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Segments
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage, tunable


class FixedWindows(Stage):
    """Cut the video into windows of so many frames; the last may be shorter.

    Frames are counted among those the vision tower encoded.
    """

    frames: int = tunable(4, low=1, high=64, help="frames in a window")

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        count = tokens.keep.shape[0]
        return Segments(torch.arange(count, device=tokens.keep.device) // self.frames)


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    register("fixed-windows", FixedWindows)
