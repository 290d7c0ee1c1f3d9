"""Attention of single modules, diverted: the kernel stays what the user chose, only its arguments pass through us.

A patched module gets a shallow copy of its configuration that names our dispatcher. The model's own configuration,
from which transformers makes the masks, is not touched, and other models never see the dispatcher.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from vidsieve.adapters.transformers_internals import (
    attention_kernel,
    attention_name,
    register_attention,
    renamed_attention,
)

NAME = "vidsieve"
FLASH_NAME = "vidsieve_flash"
"""What stands for FlashAttention: modules that find "flash" in their configuration call their kernel in another way."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionCall:
    """One call of an attention kernel: query [rows heads new dim], key and value [rows kv_heads keys dim]."""

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: Mapping[str, Any]
    kernel: Callable[..., Any]
    implementation: str

    def run(self, key: Tensor, value: Tensor, mask: Any) -> Any:
        """The module's own kernel on these keys."""
        return self.kernel(self.module, self.query, key, value, mask, **self.options)


@dataclass(frozen=True, eq=False)
class _Patch:
    """A tap on a module; `below` is the one it was put on top of, which it calls as its kernel."""

    layer: int
    config: Any
    tap: Callable[[AttentionCall], Any]
    below: "_Patch | None" = None


_PATCHES: WeakKeyDictionary[nn.Module, _Patch] = WeakKeyDictionary()


def _dispatch(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> Any:
    """What a patched module calls instead of its kernel."""
    patch = _PATCHES[module]
    # kernels look at the module's configuration, so it must name the real implementation while they run
    ours, module.config = module.config, patch.config
    try:
        return _through(patch, module, query, key, value, attention_mask, **options)
    finally:
        module.config = ours


def _through(patch: _Patch, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """One call through a tap, and through those below it."""
    below, implementation = patch.below, attention_name(patch.config)
    call = AttentionCall(
        layer=patch.layer,
        module=module,
        query=query,
        key=key,
        value=value,
        mask=mask,
        options=options,
        kernel=attention_kernel(module, implementation) if below is None else partial(_through, below),
        implementation=implementation,
    )
    return patch.tap(call)


@contextmanager
def tapped(modules: Mapping[int, Any], tap: Callable[[AttentionCall], Any]) -> Iterator[None]:
    """While open, the attention of these modules (by layer) goes through `tap`, which must return a kernel's result."""
    for name in (NAME, FLASH_NAME):
        register_attention(name, _dispatch)
    found = {layer: (module.config, _PATCHES.get(module)) for layer, module in modules.items()}
    try:
        for layer, module in modules.items():
            config, below = found[layer]
            _PATCHES[module] = _Patch(layer, config if below is None else below.config, tap, below)
            module.config = renamed_attention(config, FLASH_NAME if "flash" in attention_name(config) else NAME)
        yield
    finally:
        for layer, module in modules.items():
            module.config, below = found[layer]
            _PATCHES.pop(module, None)
            if below is not None:
                _PATCHES[module] = below
