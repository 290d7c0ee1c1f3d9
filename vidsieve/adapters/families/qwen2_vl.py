"""Qwen2-VL: a temporal patch of two frames is one unit; 2x2 patches merge into a visual token; M-RoPE."""

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import grid_layouts
from vidsieve.adapters.towers import GRID_UNITS, grid_tower

ADAPTER = Adapter(
    family="qwen2-vl",
    aliases=("qwen2vl",),
    model_classes=("Qwen2VLForConditionalGeneration",),
    default_checkpoint="Qwen/Qwen2-VL-2B-Instruct",
    needs=(),
    layouts=grid_layouts,
    units=GRID_UNITS,
    tower=grid_tower(),
    special_from=151643,
)
