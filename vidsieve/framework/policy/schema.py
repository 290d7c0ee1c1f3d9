"""The JSON Schema of policy files, for editors: made from what the registered stages declare."""

from typing import Any, get_args

from vidsieve.framework.composition import FORMAT, Positions
from vidsieve.framework.policy.file import CHOICES
from vidsieve.framework.registry import Registry, default

_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT}


def policy_schema(registry: Registry | None = None) -> dict[str, Any]:
    """JSON Schema (2020-12) of a policy file, with one branch per registered stage."""
    stages = (registry or default()).stages
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vidsieve policy",
        "type": "object",
        "additionalProperties": False,
        "required": ["format", "name", "stages"],
        "properties": {
            "format": {"const": FORMAT},
            "name": _TEXT,
            "summary": _TEXT,
            "sources": _TEXTS,
            "reference": _TEXT,
            "requires": _TEXTS,
            "retention_ratio": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "positions": {"enum": list(get_args(Positions))},
            "exact": {"type": "boolean"},
            "stages": {"type": "array", "items": {"anyOf": [_stage(name, stages[name]) for name in sorted(stages)]}},
            "search": _search(sorted(stages)),
            "provenance": {"type": "object"},
        },
    }


def _search(stages: list[str]) -> dict[str, Any]:
    """Ranges by setting, under `stages` what may be left out or exchanged, and whether a search takes it unasked."""
    names = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"enum": stages}}
    choice = {"anyOf": [{"enum": list(CHOICES)}, names]}
    properties = {"default": {"type": "boolean"}, "stages": {"type": "object", "additionalProperties": choice}}
    return {"type": "object", "properties": properties}


def _stage(name: str, stage: Any) -> dict[str, Any]:
    """The branch of one stage: its name, an optional label, its settings."""
    settings = stage.model_json_schema()
    summary = (stage.__doc__ or "").strip().splitlines()
    return {
        "type": "object",
        "description": summary[0] if summary else "",
        "additionalProperties": False,
        "required": ["use", *settings.get("required", [])],
        "properties": {"use": {"const": name}, "as": _TEXT, **settings.get("properties", {})},
    }
