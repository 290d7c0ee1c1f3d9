"""Qwen3.5: laid out as Qwen3-VL; three of four decoder layers are linear attention, which keeps no KV entries.

So stages that choose KV entries cannot act on it, and the linear layers see the kept tokens as if they were neighbours.
"""

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import grid_layouts
from vidsieve.adapters.towers import GRID_UNITS, grid_tower
from vidsieve.framework.hookspecs import VIDEO_HOOKS

ADAPTER = Adapter(
    family="qwen3.5",
    aliases=("qwen3-5",),
    model_classes=("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),
    default_checkpoint="Qwen/Qwen3.5-27B",
    needs=(),
    layouts=grid_layouts,
    units=GRID_UNITS,
    tower=grid_tower(),
    runs=frozenset(VIDEO_HOOKS),
    special_from=248044,
)
