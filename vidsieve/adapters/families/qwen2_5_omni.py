"""Qwen2.5-Omni: its thinker (`model.thinker`) is laid out as Qwen2.5-VL; audio passes untouched, inside a video too."""

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import grid_layouts
from vidsieve.adapters.towers import GRID_UNITS, grid_tower

ADAPTER = Adapter(
    family="qwen2.5-omni",
    aliases=("qwen2-5-omni", "qwen2.5omni"),
    model_classes=("Qwen2_5OmniThinkerForConditionalGeneration",),
    default_checkpoint="Qwen/Qwen2.5-Omni-7B",
    needs=(),
    parts_of=("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration"),
    layouts=grid_layouts,
    units=GRID_UNITS,
    tower=grid_tower(windows=True),
    offers=frozenset({"token_grid", "question", "timestamps_s"}),
    special_from=151643,
)
