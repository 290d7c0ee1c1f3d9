"""Vidsieve: fewer visual tokens for video LLMs in transformers, with no training.

Names are imported when they are first used, so that `import vidsieve` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "vidsieve.framework.policy.file": ("load_policy",),
    "vidsieve.framework.policy.policy": ("Policy",),
    "vidsieve.framework.planning.pipeline": ("TokenPlan",),
    "vidsieve.framework.report": ("Report",),
    "vidsieve.framework.task": ("Example", "Outcome", "Task"),
    "vidsieve.framework.registry": ("register",),
    "vidsieve.framework.stage": ("Stage", "tunable"),
    "vidsieve.framework.hookspecs": ("hookimpl",),
    "vidsieve.framework.plans": (
        *("Budget", "Keep", "KeepFrames", "KeepKV", "Merge", "Scores", "Segments"),
        *("apportion", "tokens_to_keep"),
    ),
    "vidsieve.framework.records": ("DecodeStep", "FrameBatch", "LayerTokens", "PromptKV", "VideoShape", "VideoTokens"),
    "vidsieve.framework.errors": (
        *("VidsieveError", "UsageError", "UnknownNameError", "PolicyError", "PolicyFileError", "RetentionError"),
        *("PlanError", "StageError", "PluginError", "ModelError", "InputError", "MediaError", "DataError", "TuneError"),
        "TargetUnreachableError",
    ),
    "vidsieve.adapters.apply": ("applied", "compress"),
    "vidsieve.adapters.adapter": ("Adapter",),
    "vidsieve.adapters.layouts": ("VideoLayout", "grid_layouts", "square_layouts"),
    "vidsieve.adapters.towers": ("FRAME_UNITS", "GRID_UNITS", "Tower"),
    "vidsieve.media": ("Clip", "read_video", "write_video"),
    "vidsieve.bundled.bundled_task": ("BundledTask", "write_dataset"),
    "vidsieve.tuner.request": ("TuneRequest",),
    "vidsieve.tuner.result": ("Listener", "TuneResult"),
    "vidsieve.tuner.statistics": ("Interval", "examples_needed", "paired_difference"),
    "vidsieve.report": ("write_pareto", "write_report"),
    "vidsieve.harness": ("tune",),
    "vidsieve.view.side_by_side": ("View", "show"),
}
_HOME = {name: (module, name) for module, names in _HOMES.items() for name in names}
_HOME["default_registry"] = ("vidsieve.framework.registry", "default")

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vidsieve' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
