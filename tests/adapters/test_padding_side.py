"""Padding on the right: refused by `generate` under every policy alike, kept on its side by `compress`."""

from typing import Any

import pytest
import torch
from adapters.test_caller_view import POLICIES

import vidsieve
from vidsieve.framework.errors import InputError
from vidsieve.testing.adapter_kit import ALL, BATCHES, EMPTY, HALF, Row, run, unpatched, with_types

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


def padded_right(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompts with their padding behind them."""
    order = (inputs["attention_mask"] == 0).int().argsort(dim=1, stable=True)
    return inputs | {name: inputs[name].gather(1, order) for name in PER_TOKEN if name in inputs}


@pytest.mark.parametrize("policy", [*POLICIES.values(), EMPTY, ALL], ids=[*POLICIES, "empty", "everything kept"])
def test_generate_refuses_rows_that_end_in_padding_under_every_policy(kit: Any, model: Any, policy: Any) -> None:
    inputs = padded_right(kit.make_inputs(model, *BATCHES["uneven batch"]))
    with pytest.raises(InputError, match=r"attention_mask: rows 1 end in padding.*padding_side.*'left'"):
        run(model, policy, inputs)
    del inputs["attention_mask"]
    with pytest.raises(InputError, match="rows 1 end in padding"):
        run(model, policy, inputs, pad_token_id=0)


def test_generate_refuses_them_behind_a_cache_too(kit: Any, model: Any) -> None:
    first, _ = run(model, HALF, kit.make_inputs(model, *BATCHES["padded batch"]))
    mask = torch.ones(2, first.sequences.shape[1] + 2)
    mask[0, -1] = 0
    ids = torch.cat([first.sequences, torch.tensor([[8, 9], [8, 9]])], dim=1)
    with pytest.raises(InputError, match="rows 0 end in padding"):
        run(model, HALF, {"input_ids": ids, "attention_mask": mask, "past_key_values": first.past_key_values})


def test_a_call_without_a_video_is_transformers_own(kit: Any, model: Any) -> None:
    inputs = padded_right(kit.make_inputs(model, Row(videos=0, words=4), Row(videos=0, words=9)))
    expected = unpatched(model, inputs).sequences
    assert torch.equal(run(model, HALF, inputs)[0].sequences, expected)


@pytest.mark.parametrize("policy", [HALF, ALL, EMPTY], ids=["half", "everything kept", "empty"])
def test_compress_keeps_the_side_and_each_row_is_as_alone(kit: Any, model: Any, policy: Any) -> None:
    rows = BATCHES["uneven batch"]
    for side in (padded_right, dict):
        short, _ = vidsieve.compress(model, side(kit.make_inputs(model, *rows)), policy)
        lengths = short["attention_mask"].sum(dim=1)
        ends = short["attention_mask"][:, -1 if side is padded_right else 0]
        assert ends.tolist() == [1, 0] if lengths[0] > lengths[1] else [0, 1]
        logits = model(**short).logits
        for index, row in enumerate(rows):
            alone, _ = vidsieve.compress(model, kit.make_inputs(model, row), policy)
            expected = model(**alone).logits[0]
            assert torch.allclose(logits[index][short["attention_mask"][index].bool()], expected, atol=2e-5)


def test_nothing_removed_leaves_a_forward_of_right_padded_rows_as_it_was(kit: Any, model: Any) -> None:
    inputs = padded_right(kit.make_inputs(model, *BATCHES["padded batch"]))
    expected = model(**with_types(model, inputs)).logits
    short, _ = vidsieve.compress(model, inputs, EMPTY)
    real = inputs["attention_mask"].bool()
    assert torch.allclose(model(**short).logits[real], expected[real], atol=2e-5)
