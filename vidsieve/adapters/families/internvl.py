"""InternVL3 (and the other InternVL in transformers): frames are images of one tile, 16 x 16 tokens at 448 px.

Between two frames stands `</img>`, a line break, "Frame12: " and `<img>`; each video counts from 1. Images of several
tiles pass untouched; so does a lone picture, unless `mm_token_type_ids` says that it is a video. Small images close
behind each other, of one tile each, cannot be told from frames without it.
"""

from collections.abc import Mapping
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout, picture_layouts
from vidsieve.adapters.towers import frame_tower, square_mean


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """Pixel shuffle makes the side of the patch grid smaller by the downsampling ratio."""
    vision = config.vision_config
    side = int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)
    return picture_layouts(config, inputs, side=side, gap=12, numbered=5, tiles=len)


def pooled(model: Any, patches: Any) -> Any:
    """Pixel shuffle makes a token of each square of patches."""
    return square_mean(patches, round(1 / model.config.downsample_ratio))


ADAPTER = Adapter(
    family="internvl3",
    aliases=("internvl",),
    model_classes=("InternVLForConditionalGeneration",),
    default_checkpoint="OpenGVLab/InternVL3-1B-hf",
    needs=(),
    layouts=layouts,
    modality="image",
    tower=frame_tower("vision_tower", None, pooled),
    spent=frozenset({"mm_token_type_ids"}),
    special_from=151643,
)
