"""Models in wrappers, replaced forwards and train mode: carried out as without, or refused in words."""

import copy
import functools
from typing import Any

import pytest
import torch
from adapters.test_caller_view import POLICIES
from torch import nn

import vidsieve
from vidsieve.framework.errors import ModelError
from vidsieve.testing.adapter_kit import EMPTY, HALF, Row, logits, run

OPTIONS = {"max_new_tokens": 4, "do_sample": False}


class Parallel(nn.Module):
    """What DistributedDataParallel and its kin are to us."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module = model


class Tuner(nn.Module):
    """PEFT's model of an adapter in the weights: unknown names are found on the model within."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)


class Peft(nn.Module):
    """PEFT's own wrapper."""

    def __init__(self, model: Any, *, prompt_learning: bool = False) -> None:
        super().__init__()
        self.base_model = Tuner(model)
        self.active_peft_config = type("Config", (), {"is_prompt_learning": prompt_learning})()

    def get_base_model(self) -> Any:
        return self.base_model.model

    def generate(self, **inputs: Any) -> Any:
        return self.base_model.generate(**inputs)


WRAPPERS = {
    "peft": Peft,
    "parallel": Parallel,
    "compiled": torch.compile,
    "parallel of peft": lambda model: Parallel(Peft(model)),
    "compiled peft": lambda model: torch.compile(Peft(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_policy_reaches_the_model_in_a_wrapper(kit: Any, model: Any, wrap: Any) -> None:
    inputs, wrapped = kit.make_inputs(model, Row()), wrap(model)
    expected = run(model, HALF, inputs, **OPTIONS)[0].sequences
    with vidsieve.applied(wrapped, HALF) as block:
        assert block.model is model
        caller = wrapped if hasattr(wrapped, "generate") else wrapped.module
        assert torch.equal(caller.generate(**inputs, **OPTIONS), expected)
    assert len(block.reports) == 1
    short, _ = vidsieve.compress(wrapped, inputs, HALF)
    assert torch.equal(short["input_ids"], vidsieve.compress(model, inputs, HALF)[0]["input_ids"])


def test_prompt_learning_and_other_holders_of_a_model_are_refused_with_the_way(model: Any) -> None:
    for call in (vidsieve.applied, lambda model, policy: vidsieve.compress(model, {}, policy)):
        with pytest.raises(ModelError, match=r"virtual tokens of prompt learning.*LoRA"):
            call(Peft(model, prompt_learning=True), HALF)
        with pytest.raises(ModelError, match=r"no adapter for Pipeline.*itself \(here its `\.net`\)"):
            call(Pipeline(model), HALF)
        with pytest.raises(ModelError, match=r"no adapter for Linear.*itself, or"):
            call(Parallel(nn.Linear(1, 1)), HALF)


class Pipeline:
    def __init__(self, model: Any) -> None:
        self.net = model


def replaced(model: Any) -> Any:
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    return model


def overridden(model: Any) -> Any:
    class Own(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(input_ids=input_ids, **kwargs)

    model.__class__ = Own
    return model


@pytest.mark.parametrize("change", [replaced, overridden])
@pytest.mark.parametrize("policy", [*POLICIES.values(), EMPTY], ids=[*POLICIES, "empty"])
def test_a_forward_without_the_names_is_refused_and_one_with_them_runs(
    kit: Any, model: Any, change: Any, policy: Any
) -> None:
    inputs = kit.make_inputs(model, Row())
    changed = change(copy.deepcopy(model))
    with pytest.raises(ModelError, match=r"`forward` of this .* was replaced or overridden .*mm_encoder_outputs"):
        run(changed, policy, inputs)
    own = vars(changed) if "forward" in vars(changed) else None
    if own is not None:
        changed.forward = functools.wraps(model.forward)(own["forward"])
        assert torch.equal(logits(run(changed, policy, inputs)[0]), logits(run(model, policy, inputs)[0]))


@pytest.mark.parametrize("policy", [*POLICIES.values(), EMPTY], ids=[*POLICIES, "empty"])
def test_gradient_checkpointing_is_refused_in_train_mode_only(kit: Any, model: Any, policy: Any) -> None:
    inputs, changed = kit.make_inputs(model, Row()), copy.deepcopy(model)
    changed.gradient_checkpointing_enable()
    assert torch.equal(logits(run(changed, policy, inputs)[0]), logits(run(model, policy, inputs)[0]))
    changed.train()
    with pytest.raises(ModelError, match=r"gradient checkpointing.*model\.eval\(\)"):
        run(changed, policy, inputs)
