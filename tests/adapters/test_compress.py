"""`compress`: what a plain forward is given, and decoding by hand from it."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vidsieve
from vidsieve.testing.adapter_kit import BATCHES, HALF, STEPS, KeepRandom, Row, logits, policy_of, run

COMPACT = policy_of(KeepRandom(), ratio=0.5, positions="compact")


def by_hand(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Logits of greedy decoding, as the documents say."""
    mask, positions, steps = inputs["attention_mask"], inputs["position_ids"], []
    output = model(**inputs, use_cache=True)
    for _ in range(STEPS):
        steps.append(output.logits[:, -1].float())
        token = steps[-1].argmax(dim=-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        positions = positions[..., -1:] + 1
        output = model(
            input_ids=token, attention_mask=mask, position_ids=positions, past_key_values=output.past_key_values
        )
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("policy", [HALF, COMPACT], ids=["original", "compact"])
@pytest.mark.parametrize("rows", [BATCHES["two videos"], BATCHES["uneven batch"]], ids=["one", "uneven batch"])
def test_decoding_by_hand_is_what_generate_does(kit: Any, model: Any, rows: Any, policy: Any) -> None:
    inputs = kit.make_inputs(model, *rows)
    expected = logits(run(model, policy, inputs)[0])
    with torch.no_grad():
        short, _ = vidsieve.compress(model, inputs, policy)
        # another request in between: nothing of the first may be on the model
        vidsieve.compress(model, kit.make_inputs(model, Row(seed=3, frames=(7,))), HALF)
        assert torch.allclose(by_hand(model, short), expected, atol=2e-5)


def test_nothing_is_left_on_the_model(kit: Any, model: Any) -> None:
    before = dict(vars(model.base_model))
    vidsieve.compress(model, kit.make_inputs(model, Row()), HALF)
    assert all(vars(model.base_model)[name] is value for name, value in before.items())
    assert vars(model.base_model).keys() == before.keys()


def test_the_language_model_gets_a_gradient_and_the_tower_none(kit: Any, model: Any) -> None:
    short, _ = vidsieve.compress(model, kit.make_inputs(model, Row()), HALF)
    model(**short).logits.sum().backward()
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    assert any(".language_model." in name for name in with_gradient)
    assert not [name for name in with_gradient if ".visual." in name or ".vision_tower." in name]
