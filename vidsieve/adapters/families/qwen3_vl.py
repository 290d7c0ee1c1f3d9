"""Qwen3-VL: a temporal patch of two frames is one unit, with its timestamp as text before it; DeepStack; M-RoPE.

The timestamps and the vision start and end tokens between frames are text, so they always stay. The rows that
DeepStack adds in the first decoder layers are cut with the same index as the tokens.
"""

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import grid_layouts
from vidsieve.adapters.towers import GRID_UNITS, grid_tower

ADAPTER = Adapter(
    family="qwen3-vl",
    aliases=("qwen3vl",),
    model_classes=("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
    default_checkpoint="Qwen/Qwen3-VL-2B-Instruct",
    needs=(),
    layouts=grid_layouts,
    units=GRID_UNITS,
    tower=grid_tower(),
    special_from=151643,
)
