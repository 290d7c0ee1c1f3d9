"""Attention of single modules, diverted: the kernel stays what the user chose, only its arguments pass through us.

A patched module gets a shallow copy of its configuration that names our dispatcher. The model's own configuration,
from which transformers makes the masks, is not touched, and other models never see the dispatcher.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vidsieve.adapters.transformers_internals import (
    PROJECTIONS,
    attention_kernel,
    attention_name,
    forwarding,
    register_attention,
    renamed_attention,
    unread_configuration,
)
from vidsieve.framework.errors import ModelError

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Tapped:
    """Queries and keys of a layer in one pass, rotated; keys of earlier turns stand in front.

    `real` marks the columns of the pass that are no padding, `past` the same for what the cache held before.
    """

    query: Float[Tensor, "rows heads new dim"]
    key: Float[Tensor, "rows kv_heads keys dim"]
    scaling: float
    real: Bool[Tensor, "prompts new"]
    past: Bool[Tensor, "prompts past"]

    def rows(
        self, batch_row: int, prompt: int, asked: Int[Tensor, " asked"], visual: Int[Tensor, " visual"]
    ) -> Float[Tensor, "heads asked visual"]:
        """Softmax over every key a query may see, at the visual columns; float32, keys shared by groups of heads."""
        key = self.key[batch_row].float()
        asked, visual = asked.to(key.device), visual.to(key.device)
        query = self.query[batch_row, :, asked].float()
        grouped = query.view(key.shape[0], -1, *query.shape[1:])
        logits = torch.einsum("kgqd,ksd->kgqs", grouped, key) * self.scaling
        place = torch.arange(self.real.shape[1], device=key.device)
        new = self.real[prompt].to(key.device) & (place <= asked[:, None])
        past = self.past[prompt].to(key.device).expand(len(asked), -1)
        logits = logits.masked_fill(~torch.cat([past, new], dim=1), -torch.inf)
        weights = logits.softmax(dim=-1)[..., self.past.shape[1] + visual]
        return weights.flatten(0, 1)

    def keys(self, batch_row: int, places: Int[Tensor, " asked"]) -> Float[Tensor, "kv_heads asked dim"]:
        """The keys of some columns of the pass, in float32."""
        return self.key[batch_row, :, self.past.shape[1] + places.to(self.key.device)].float()


def ones_rotated(
    decoder: Any,
    rotation: tuple[Float[Tensor, "rows new turned"], Float[Tensor, "rows new turned"]],
    batch_row: int,
    asked: Int[Tensor, " asked"],
    visual: Int[Tensor, " visual"],
    head_dim: int,
) -> Float[Tensor, "asked visual"]:
    """Scaled product of queries and keys whose `head_dim` channels are all one, rotated as a layer does, in float32.

    Two ones turned by the angles a and b give 2 cos(a - b), however a model pairs channels; channels that are not
    turned give one each.

    Raises:
        ModelError: the cosines have an axis for each axis of M-RoPE, which this release does not mix.
    """
    cosine, sine = rotation
    if cosine.dim() != 3:
        raise ModelError(
            f"rotary weights of {type(decoder).__name__}: cosines of (rows, tokens, channels) asked, got "
            f"{tuple(cosine.shape)}; leave out the setting that reads them."
        )
    row = min(batch_row, len(cosine) - 1)
    both = torch.cat([cosine[row], sine[row]], dim=-1).float()
    pairs = getattr(decoder.rotary_emb, "inv_freq", cosine[0, 0, ::2]).numel()
    turned = both[asked.to(both.device)] @ both[visual.to(both.device)].T * (2 * pairs / cosine.shape[-1])
    return (turned + head_dim - 2 * pairs) / head_dim**0.5


def scaling_of(call: AttentionCall) -> float:
    """What a kernel multiplies its logits with."""
    given = call.options.get("scaling")
    return float(call.query.shape[-1] ** -0.5 if given is None else given)


def queries_and_keys(
    layer: Any, number: int, hidden: Float[Tensor, "rows new dim"], embeddings: Any, asked: Int[Tensor, "rows asked"]
) -> AttentionCall:
    """What a decoder layer's attention would be called with on `hidden`: its norm, projections and rotation only.

    Queries are right in the columns `asked`, and may be anything in others; values are not worked out.
    """
    found: list[AttentionCall] = []

    def grab(call: AttentionCall) -> Any:
        found.append(call)
        return call.query.transpose(1, 2), None

    with tapped({number: layer.self_attn}, grab), keys_only(layer.self_attn, asked):
        layer.self_attn(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=embeddings,
            attention_mask=None,
            past_key_values=None,
        )
    if not found:
        raise unread_configuration(layer.self_attn)
    return found[0]


@contextmanager
def keys_only(attention: Any, asked: Int[Tensor, "rows asked"]) -> Iterator[None]:
    """While open, an attention module projects queries in the columns `asked` alone, no values, and no output.

    A module that has not the usual three projections works everything out.
    """
    parts = [module for name in PROJECTIONS if (module := getattr(attention, name, None)) is not None]
    if len(parts) < len(PROJECTIONS):
        yield
        return
    query, value, output = (module.forward for module in parts)

    def some(hidden: Tensor) -> Tensor:
        places = asked.to(hidden.device).unsqueeze(-1)
        made = query(hidden.gather(1, places.expand(-1, -1, hidden.shape[-1])))
        width = made.shape[-1]
        return made.new_zeros(*hidden.shape[:-1], width).scatter_(1, places.expand(-1, -1, width), made)

    def one(hidden: Tensor) -> Tensor:
        return value(hidden[:, :1]).expand(-1, hidden.shape[1], -1)

    def first(mixed: Tensor) -> Tensor:
        return output(mixed[:, :1])

    with ExitStack() as stack:
        for module, forward in zip(parts, (some, one, first), strict=True):
            stack.enter_context(forwarding(module, forward))
        yield
