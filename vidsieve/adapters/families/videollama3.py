"""VideoLLaMA3: frames of any size with a timestamp as text before each; its processor leaves out still tokens itself.

What `video_compression_mask` leaves out has no placeholder, so it is dead from the start: retention counts only what
the prompt holds. With `use_token_compression=False` in the processor nothing is left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout, grid_layouts


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """Each video has its own merge size."""
    found = grid_layouts(config, inputs, merge=inputs["video_merge_sizes"].tolist())
    mask = inputs.get("video_compression_mask")
    if mask is None:
        return found
    parts = mask.bool().split([layout.visual for layout in found])
    pairs = zip(found, parts, strict=True)
    return [replace(layout, alive=part.view(layout.frames, layout.tokens)) for layout, part in pairs]


ADAPTER = Adapter(
    family="videollama3",
    aliases=("video-llama3",),
    model_classes=("VideoLlama3ForConditionalGeneration",),
    default_checkpoint="lkhl/VideoLLaMA3-2B-Image-HF",
    needs=(),
    layouts=layouts,
    spent=frozenset({"video_compression_mask"}),
    special_from=151643,
)
