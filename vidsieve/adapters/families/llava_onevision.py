"""LLaVA-OneVision: every frame pooled to half the patch grid (14 x 14 at 384 px), one newline row after the video."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout, square_layouts
from vidsieve.adapters.towers import FRAME_UNITS, frame_tower


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """Bilinear pooling rounds the side up; the newline is structural."""
    vision = config.vision_config
    return square_layouts(inputs, side=ceil(vision.image_size // vision.patch_size / 2), structural=1)


ADAPTER = Adapter(
    family="llava-onevision",
    aliases=("llava-ov",),
    model_classes=("LlavaOnevisionForConditionalGeneration",),
    default_checkpoint="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    needs=(),
    layouts=layouts,
    units=FRAME_UNITS,
    tower=frame_tower(
        "vision_tower", "multi_modal_projector", lambda model, patches: model.base_model.apply_pooling(patches)
    ),
    special_from=151643,
)
