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
    "vidsieve.framework.registry": ("register",),
    "vidsieve.framework.stage": ("Stage", "tunable"),
    "vidsieve.framework.hookspecs": ("hookimpl",),
    "vidsieve.framework.plans": ("Budget", "Keep", "KeepFrames", "KeepKV", "Merge", "Scores", "Segments"),
    "vidsieve.framework.records": ("DecodeStep", "FrameBatch", "LayerTokens", "VideoShape", "VideoTokens"),
    "vidsieve.framework.errors": ("VidsieveError",),
    "vidsieve.adapters.apply": ("applied", "compress"),
    "vidsieve.harness": ("tune",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vidsieve' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
