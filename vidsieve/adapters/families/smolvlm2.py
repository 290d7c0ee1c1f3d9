"""SmolVLM2: frames are images, 8 x 8 or 9 x 9 tokens each, with a timestamp as text between them.

A sentence of more than twenty tokens opens each video. A frame is introduced by the token for a whole image, the tiles
of a split image by tokens of their place, so images pass untouched. So does a lone picture, unless
`mm_token_type_ids` says that it is a video. Unsplit images close behind each other cannot be told from frames
without it.
"""

from collections.abc import Mapping
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout, picture_layouts


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """Pixel shuffle makes the side of the patch grid smaller by the scale factor."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size // config.scale_factor
    return picture_layouts(config, inputs, side=side, gap=24, tiles=_tiles)


def _tiles(pixels: Any) -> int:
    """The pictures in (rows, pictures, channels, height, width): rows with fewer are filled up with zeros."""
    return int((pixels != 0).flatten(2).any(-1).sum())


ADAPTER = Adapter(
    family="smolvlm2",
    aliases=("smolvlm",),
    model_classes=("SmolVLMForConditionalGeneration",),
    default_checkpoint="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    needs=(),
    layouts=layouts,
    modality="image",
    special_from=49152,
    spent=frozenset({"mm_token_type_ids"}),
)
