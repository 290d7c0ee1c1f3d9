"""Laws of torch.compile, and FlashAttention-2 as transformers calls it, its kernels written out in plain torch.

Code that was compiled before, inside or after the block answers as the plain model does.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as utils
from torch import Tensor
from transformers import CompileConfig

from vidsieve.adapters.adapter import decoder_of
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.policy.policy import Policy
from vidsieve.testing.adapter_decoder_kit import KeepKeys, TopKV, TopLayer
from vidsieve.testing.adapter_kit import HALF, ModelKit, Row, adapter_for, logits, policy_of, run, unpatched

_HOW: dict[str, Any] = {"backend": "eager", "dynamic": True}
"""Tracing shows what is guarded. With dynamic shapes a graph fits the next call, however short its prompt is."""
_LAYERS = 2


def _compile_model(model: Any) -> dict[str, Any]:
    model.compile(**_HOW)
    return {}


def _compile_decoder(model: Any) -> dict[str, Any]:
    decoder_of(model).compile(**_HOW)
    return {}


def _compile_forward(model: Any) -> dict[str, Any]:
    model.forward = torch.compile(model.forward, **_HOW)
    return {}


def _wrap_decoder(model: Any) -> dict[str, Any]:
    decoder = decoder_of(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is decoder:
                setattr(module, name, torch.compile(decoder, **_HOW))
    return {}


def _static_cache(model: Any) -> dict[str, Any]:
    config: Any = CompileConfig(**_HOW)
    config.mode = None  # "reduce-overhead" by default, which the backend "eager" does not take
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


WAYS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "decoder": _compile_decoder,
    "model": _compile_model,
    "forward": _compile_forward,
    "decoder wrapped": _wrap_decoder,
    "static cache": _static_cache,
}
"""Each compiles a model or a part of it, and returns the options of `generate` that go with it."""


class CompileLaws(ModelKit):
    """Policies before the language model, inside it and in decode, on compiled models."""

    @pytest.mark.parametrize("inside", [False, True], ids=["before", "inside"])
    @pytest.mark.parametrize("way", WAYS)
    def test_a_compiled_model_answers_as_the_plain_one(self, model: Any, way: str, inside: bool) -> None:
        self.answers_as_uncompiled(model, way, inside=inside)

    def answers_as_uncompiled(self, model: Any, way: str, *, inside: bool = False) -> None:
        """Compile a model in one of `WAYS` and compare. Its first call is uncompressed, or `inside` the block."""
        self.uses(*({way} & {"static cache"}))
        _take_layers(model)
        inputs, steps, policies = self.make_inputs(model, Row()), {"max_new_tokens": 3}, _policies(model)
        plain = logits(unpatched(model, inputs, **steps))
        expected = {name: logits(run(model, policy, inputs, **steps)[0]) for name, policy in policies.items()}
        assert not torch.allclose(expected["before"], plain, atol=1e-3)
        torch._dynamo.reset()
        options = steps | WAYS[way](model)
        if not inside:
            assert torch.allclose(logits(unpatched(model, inputs, **options)), plain, atol=1e-5)
        for name, policy in policies.items():
            if way == "static cache" and name in ("layer", "evicted"):
                with pytest.raises(PolicyError, match="static"):
                    run(model, policy, inputs, **options)
                continue
            output, report = run(model, policy, inputs, **options)
            assert torch.allclose(logits(output), expected[name], atol=1e-5), name
            assert report.not_run == ()
        assert torch.allclose(logits(unpatched(model, inputs, **options)), plain, atol=1e-5)
        torch._dynamo.reset()


def _policies(model: Any) -> dict[str, Policy]:
    """One policy for each time at which the family lets stages act."""
    runs = adapter_for(model).runs
    found = {"before": HALF}
    if "prune_layer" in runs:
        found["layer"] = policy_of(TopLayer(after=(0,)), ratio=0.7)
    if "prune_kv" in runs:
        found["kv"] = policy_of(TopKV(after=0))
        found["parked"] = policy_of(TopKV(after=0, parked=True))
    if "evict_kv" in runs:
        found["evicted"] = policy_of(KeepKeys())
    return found


def _take_layers(model: Any) -> None:
    """Leave the model fewer decoder layers, which are traced one by one, where all are of one type."""
    decoder, config = decoder_of(model), decoder_of(model).config
    types = getattr(config, "layer_types", None)
    if set(types or ()) <= {"full_attention"}:
        decoder.layers = decoder.layers[:_LAYERS]
        config.num_hidden_layers = _LAYERS
        if types:
            config.layer_types = types[:_LAYERS]


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, causal: bool) -> Tensor:
    """Softmax attention of one sequence [new heads dim], aligned at the bottom right as FlashAttention is."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    logits = torch.einsum("qhd,khd->hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        allowed = torch.ones(logits.shape[1:], dtype=torch.bool).tril(key.shape[0] - query.shape[0])
        logits = logits.masked_fill(~allowed, -torch.inf)
    return torch.einsum("hqk,khd->qhd", logits.softmax(dim=-1), value)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False
) -> Tensor:
    """A batch without padding."""
    return torch.stack([_attend(*one, softmax_scale, causal) for one in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    dropout_p: float = 0.0,
    softmax_scale: Any = None,
    causal: bool = False,
) -> Tensor:
    """Sequences of different lengths, one behind the other."""
    parts = []
    ends = list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True))
    for (q0, k0), (q1, k1) in itertools.pairwise(ends):
        parts.append(_attend(q[q0:q1], k[k0:k1], v[k0:k1], softmax_scale, causal))
    return torch.cat(parts)


@contextmanager
def flash_attention(model: Any, config: Any = None) -> Iterator[None]:
    """While open, the language model of `model`, or what has `config`, runs transformers' FlashAttention-2 path."""
    config, found = config or model.get_decoder().config, {}
    ours = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    for name, value in (("_lazy_imports", lambda *_, **__: ours), ("_loaded_implementation", None)):
        found[name] = getattr(utils, name)
        setattr(utils, name, value)
    given = config._attn_implementation
    config._attn_implementation_internal = "flash_attention_2"
    try:
        yield
    finally:
        config._attn_implementation_internal = given
        for name, value in found.items():
            setattr(utils, name, value)
        utils._loaded_implementation = None
