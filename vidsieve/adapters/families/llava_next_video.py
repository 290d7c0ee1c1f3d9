"""LLaVA-NeXT-Video (the class of LLaVA-Video in transformers): every frame pooled by a stride (12 x 12 at 336 px)."""

from collections.abc import Mapping
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout, square_layouts
from vidsieve.adapters.towers import FRAME_UNITS, frame_tower, square_mean


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """Pooling rounds the side down; there are no structural rows."""
    vision = config.vision_config
    return square_layouts(
        inputs, side=vision.image_size // vision.patch_size // config.spatial_pool_stride, structural=0
    )


def pooled(model: Any, patches: Any) -> Any:
    """Means, whatever the resampler itself takes of its squares."""
    return square_mean(patches, model.config.spatial_pool_stride)


ADAPTER = Adapter(
    family="llava-next-video",
    aliases=("llava-video",),
    model_classes=("LlavaNextVideoForConditionalGeneration",),
    default_checkpoint="llava-hf/LLaVA-NeXT-Video-7B-hf",
    needs=(),
    layouts=layouts,
    units=FRAME_UNITS,
    tower=frame_tower("vision_tower", "vision_resampler", pooled),
)
