"""From a video file to model inputs: read, sample, resize, normalise, write."""

import importlib
from typing import Any

_HOME = {
    "Clip": "clip",
    "Processor": "processor",
    "list_videos": "video",
    "load_processor": "loading",
    "read_video": "video",
    "write_video": "writing",
}

__all__ = ["Clip", "Processor", "list_videos", "load_processor", "read_video", "write_video"]


def __getattr__(name: str) -> Any:
    """Load on first use: torch and FFmpeg are heavy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
