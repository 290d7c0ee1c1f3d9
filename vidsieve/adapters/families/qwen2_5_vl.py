"""Qwen2.5-VL: laid out as Qwen2-VL; its M-RoPE knows the seconds between temporal patches."""

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import grid_layouts
from vidsieve.adapters.towers import GRID_UNITS, grid_tower

ADAPTER = Adapter(
    family="qwen2.5-vl",
    aliases=("qwen2-5-vl", "qwen2.5vl"),
    model_classes=("Qwen2_5_VLForConditionalGeneration",),
    default_checkpoint="Qwen/Qwen2.5-VL-3B-Instruct",
    needs=(),
    layouts=grid_layouts,
    units=GRID_UNITS,
    tower=grid_tower(windows=True),
    offers=frozenset({"token_grid", "question", "timestamps_s"}),
    special_from=151643,
)
