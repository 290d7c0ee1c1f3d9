"""Laws of torch.compile: code that was compiled before, inside or after the block answers as the plain model does."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from transformers import CompileConfig

from vidsieve.adapters.adapter import decoder_of
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.policy.policy import Policy
from vidsieve.testing.adapter_kit import Row, adapter_of, policy_of
from vidsieve.testing.adapter_kv_kit import TopKV
from vidsieve.testing.adapter_layer_kit import TopLayer
from vidsieve.testing.adapter_runs import HALF, ModelKit, logits, run, unpatched

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
    config = CompileConfig(**_HOW, mode=None)
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
            if way == "static cache" and name == "layer":
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
    runs = adapter_of(model).runs
    found = {"before": HALF}
    if "prune_layer" in runs:
        found["layer"] = policy_of(TopLayer(after=(0,)), ratio=0.7)
    if "prune_kv" in runs:
        found["kv"] = policy_of(TopKV(after=0))
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
