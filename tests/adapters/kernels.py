"""The attention kernels that layer stages must agree under."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vidsieve.testing.adapter_compile import flash_attention

KERNELS = ("sdpa", "eager", "flash")


@contextmanager
def kernel(model: Any, name: str) -> Iterator[None]:
    """While open, `model` attends with this kernel; "flash" is transformers' own path with reference kernels."""
    if name == "flash":
        with flash_attention(model):
            yield
        return
    given = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(given)
