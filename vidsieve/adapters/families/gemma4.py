"""Gemma 4: frames of any size, their patches pooled 3 x 3, with a timestamp as text before each.

Layers share KV entries and most see a window only, so stages that choose KV entries cannot act on it. A window counts
the kept tokens. In the larger models the tokens of a frame see each other both ways, those that are kept too.
"""

from collections.abc import Mapping
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout
from vidsieve.framework.errors import InputError
from vidsieve.framework.hookspecs import VIDEO_HOOKS


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """The grid of a video is read from the places of its first frame's patches; −1 fills up."""
    counts, places = inputs.get("num_frames_per_video"), inputs.get("video_position_ids")
    if counts is None or places is None:
        raise InputError(
            "model inputs: a video came without num_frames_per_video or video_position_ids, so its shape is unknown; "
            "pass them as the processor made them."
        )
    kernel = config.vision_config.pooling_kernel_size
    starts = counts.cumsum(0) - counts
    sides = (places[starts].amax(dim=1) + 1) // kernel
    found = []
    for frames, (width, height) in zip(counts.tolist(), sides.tolist(), strict=True):
        found.append(VideoLayout(frames, width * height, (frames, height, width)))
    return found


ADAPTER = Adapter(
    family="gemma4",
    aliases=("gemma-4",),
    model_classes=("Gemma4ForConditionalGeneration",),
    default_checkpoint="google/gemma-4-e2b-it",
    needs=(),
    layouts=layouts,
    runs=frozenset(VIDEO_HOOKS),
)
