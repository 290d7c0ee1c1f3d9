"""Whether the names of another program that an integration rests on are there."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def missing_names(names: Mapping[str, Sequence[str]]) -> list[str]:
    """List what is not there of `names`: dotted names by their module, or a module that cannot be imported."""
    missing = []
    for module, wanted in names.items():
        try:
            found: Any = import_module(module)
        except ImportError:
            missing.append(module)
            continue
        for name in wanted:
            part = found
            for step in name.split("."):
                part = getattr(part, step, None)
            missing += [] if part is not None else [f"{module}.{name}"]
    return missing


def release(distribution: str) -> str | None:
    """Return the version of an installed distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
