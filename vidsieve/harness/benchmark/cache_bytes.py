"""How many bytes a KV cache holds, whatever its class."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def cache_bytes(cache: Any, device: torch.device) -> tuple[int, int]:
    """Count the bytes of a cache's tensors: in all, and of those on `device`."""
    seen: dict[tuple[str, int], tuple[int, torch.device]] = {}
    for layer in getattr(cache, "layers", ()):
        for tensor in _tensors(vars(layer), 3):
            seen[str(tensor.device), tensor.data_ptr()] = (tensor.nbytes, tensor.device)
    held = [(size, where) for size, where in seen.values() if size]
    return sum(size for size, _ in held), sum(size for size, where in held if where.type == device.type)


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    """Find tensors in attributes, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, depth - 1)
    elif depth and type(value).__module__.startswith("vidsieve."):
        yield from _tensors(vars(value), depth - 1) if hasattr(value, "__dict__") else ()
