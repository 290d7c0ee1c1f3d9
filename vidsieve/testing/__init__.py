"""Tests to inherit and doors to check a method against outside results.

A stage author subclasses `StageContract`, an adapter author `AdapterContract`; pytest then runs the laws every
built-in obeys. `select_kv`, `kept_kv` and `rank_layer` feed recorded tensors to a stage and say what it keeps;
`attach_kv` attaches a KV stage to a text LLM.
"""

from typing import Any

_HOMES = {
    "StageContract": "vidsieve.testing.stage_contract",
    "AdapterContract": "vidsieve.testing.adapter_contract",
    "select_kv": "vidsieve.testing.doors",
    "rank_layer": "vidsieve.testing.doors",
    "kept_kv": "vidsieve.testing.doors",
    "attach_kv": "vidsieve.adapters.decoder.decode_kv",
    "video_tokens": "vidsieve.testing.samples",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
