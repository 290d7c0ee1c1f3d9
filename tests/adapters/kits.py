"""The contract class of each family, found among the tests of this folder by the adapter that fits its tiny model."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from adapters import tiny

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import adapter_for
from vidsieve.testing.adapter_policies import DEEP


@cache
def kits() -> dict[str, type[AdapterContract]]:
    """By family."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if "(AdapterContract)" not in file.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(f"adapters.{file.stem}")
        for kit in vars(module).values():
            if isinstance(kit, type) and issubclass(kit, AdapterContract) and kit.__module__ == module.__name__:
                found.setdefault(adapter_for(kit().build_model()).family, kit)
    return found


@contextmanager
def decoders_of(layers: int = DEEP) -> Iterator[None]:
    """While open, tiny models are built with so many decoder layers."""
    usual: Any = tiny.TEXT["num_hidden_layers"]
    tiny.TEXT["num_hidden_layers"] = layers
    try:
        yield
    finally:
        tiny.TEXT["num_hidden_layers"] = usual
