"""Ernie-4.5-VL: the resampler melts two frames into one unit; vision experts see the kept tokens as vision; M-RoPE."""

from collections.abc import Mapping
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout, grid_layouts


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """The grid counts frames; two make a unit."""
    return grid_layouts(config, inputs, temporal=config.vision_config.temporal_merge_size)


ADAPTER = Adapter(
    family="ernie-4.5-vl",
    aliases=("ernie4.5-vl",),
    model_classes=("Ernie4_5_VLMoeForConditionalGeneration",),
    default_checkpoint="baidu/ERNIE-4.5-VL-28B-A3B-PT",
    needs=("Pillow", "the checkpoint's font, for the times on frames"),
    layouts=layouts,
)
