"""From a video file to model inputs: read, sample, resize, normalise, write."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidsieve.media.clip import Clip
    from vidsieve.media.processor import Processor
    from vidsieve.media.processor_loading import load_processor
    from vidsieve.media.video import list_videos, read_ends, read_video, write_video

__all__ = ["Clip", "Processor", "list_videos", "load_processor", "read_ends", "read_video", "write_video"]

_HOME = {
    "Clip": "clip",
    "Processor": "processor",
    "list_videos": "video",
    "load_processor": "processor_loading",
    "read_ends": "video",
    "read_video": "video",
    "write_video": "video",
}


def __getattr__(name: str) -> Any:
    """Load on first use: torch and FFmpeg are heavy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
