"""GLM-4.1V and GLM-4.5V: a temporal patch of two frames is one unit, with its second as text behind it; M-RoPE.

Videos use the placeholder of images; those between video start and end are a video's. transformers cannot run a
prompt with both, nor beams or chunked prefill with a video.
"""

from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import grid_layouts
from vidsieve.adapters.towers import GRID_UNITS, grid_tower


def placeholders(config: Any, ids: Any) -> Any:
    """Image placeholders that stand inside a video."""
    opened = ids.eq(config.video_start_token_id).cumsum(-1)
    closed = ids.eq(config.video_end_token_id).cumsum(-1)
    return ids.eq(config.image_token_id) & (opened > closed)


ADAPTER = Adapter(
    family="glm4v",
    aliases=("glm-4.1v", "glm-4.5v"),
    model_classes=("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration"),
    default_checkpoint="zai-org/GLM-4.1V-9B-Thinking",
    needs=(),
    layouts=grid_layouts,
    units=GRID_UNITS,
    tower=grid_tower("visual.post_layernorm"),
    placeholders=placeholders,
    special_from=151329,
)
