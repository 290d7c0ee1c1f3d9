"""A clip longer than the model's positions is refused before its vision tower runs; anything that may fit is not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters.test_gemma4 import TestGemma4 as Gemma4
from adapters.test_llava_onevision import TestLlavaOnevision as LlavaOnevision
from adapters.test_qwen2_5_vl import TestQwen25VL as Qwen25VL
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL

import vidsieve
from vidsieve.adapters.prompt.positions import position_limit
from vidsieve.framework.errors import InputError
from vidsieve.framework.policy.policy import Policy
from vidsieve.testing.adapter_kit import ALL, EMPTY, HALF, KeepRandom, Row, full_positions, policy_of, run
from vidsieve.testing.adapter_reuse import without_tower

COMPACT = policy_of(KeepRandom(), ratio=0.25, positions="compact")
KITS = {"one axis": LlavaOnevision(), "three axes": Qwen2VL(), "sliding layers": Gemma4()}


def limited(kit: Any, limit: int) -> Any:
    model = kit.build_model()
    model.config.get_text_config().max_position_embeddings = limit
    return model


def highest(kit: Any, *rows: Row) -> int:
    """The highest position that transformers itself gives a token of the prompt."""
    model = kit.build_model()
    return int(full_positions(model, kit.make_inputs(model, *rows)).max())


@pytest.mark.parametrize("kit", KITS.values(), ids=KITS)
@pytest.mark.parametrize("policy", [EMPTY, ALL, HALF], ids=["empty", "everything kept", "half"])
def test_one_position_too_few_is_refused_before_the_tower_runs(kit: Any, policy: Policy) -> None:
    last = highest(kit, Row())
    inputs = kit.make_inputs(kit.build_model(), Row())
    run(limited(kit, last + 1), policy, inputs, max_new_tokens=1)
    model = limited(kit, last)
    with without_tower(model):
        message = rf"row 0: the prompt reaches position {last}, but the model's end at {last - 1} \(max_position_embed"
        with pytest.raises(InputError, match=message):
            run(model, policy, inputs)
        with pytest.raises(InputError, match=message):
            vidsieve.compress(model, inputs, policy)


def test_the_row_that_is_too_long_is_named_whatever_the_padding() -> None:
    kit = KITS["one axis"]
    inputs = kit.make_inputs(kit.build_model(), Row(words=4), Row(seed=1, words=12))
    last = int(inputs["attention_mask"].sum(dim=1).max()) - 1
    assert inputs["attention_mask"].sum(dim=1).argmax() == 1
    with pytest.raises(InputError, match=f"row 1: the prompt reaches position {last}"):
        run(limited(kit, last), HALF, inputs)


def test_many_tokens_may_have_few_positions() -> None:
    kit = KITS["three axes"]
    last = highest(kit, Row())
    inputs = kit.make_inputs(kit.build_model(), Row())
    assert inputs["input_ids"].shape[1] > last + 1
    run(limited(kit, last + 1), HALF, inputs, max_new_tokens=1)


def test_few_tokens_may_reach_far_where_positions_tell_seconds() -> None:
    kit = Qwen25VL()
    inputs = kit.make_inputs(kit.build_model(), Row())
    model = limited(kit, 400)
    run(model, HALF, inputs, max_new_tokens=1)
    assert inputs["input_ids"].shape[1] < 400
    seconds = torch.full_like(inputs["second_per_grid_ts"].float(), 500.0)
    with without_tower(model), pytest.raises(InputError, match="reaches position"):
        run(model, HALF, inputs | {"second_per_grid_ts": seconds})


def test_what_is_counted_anew_may_be_longer_than_the_model() -> None:
    kit = KITS["one axis"]
    last = highest(kit, Row())
    inputs = kit.make_inputs(kit.build_model(), Row())
    run(limited(kit, last // 2 + 1), COMPACT, inputs, max_new_tokens=1)
    model = limited(kit, 5)
    with without_tower(model), pytest.raises(InputError, match="end at 4"):  # the text alone is longer
        run(model, COMPACT, inputs)
    text = int((inputs["input_ids"] != model.config.video_token_id).sum())
    with pytest.raises(InputError, match="reaches position"):  # what is kept does not fit
        run(limited(kit, text + 1), COMPACT, inputs)


def test_a_later_turn_counts_what_the_cache_holds() -> None:
    kit = KITS["one axis"]
    model = kit.build_model()
    inputs = kit.make_inputs(model, Row())
    first, _ = run(model, HALF, inputs)
    second = kit.make_inputs(model, Row(seed=4))
    whole = torch.cat([first.sequences, second["input_ids"]], dim=1)
    new = second | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    model.config.get_text_config().max_position_embeddings = inputs["input_ids"].shape[1] + 8
    with without_tower(model), pytest.raises(InputError, match="reaches position"):
        run(model, HALF, new | {"past_key_values": first.past_key_values})


def test_text_alone_is_left_to_transformers() -> None:
    kit = KITS["one axis"]
    model = limited(kit, 4)
    run(model, HALF, kit.make_inputs(model, Row(videos=0, words=9)))


def config(limit: Any, **rope: Any) -> Any:
    text = SimpleNamespace(max_position_embeddings=limit, rope_parameters=rope)
    return SimpleNamespace(get_text_config=lambda: text)


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        (config(100), 100),
        (config(100, rope_type="default", mrope_section=[1, 2, 3]), 100),
        (config(100, rope_type="yarn", factor=4.0), 400),
        (config(100, rope_type="linear", factor=2.5), 250),
        (config(100, rope_type="longrope", long_factor=[1.0]), 100),
        (config(100, rope_type="dynamic", factor=2.0), None),
        (config(100, rope_type="of a stranger"), None),
        (config(100, full_attention={"rope_type": "yarn", "factor": 8.0}, sliding_attention={}), 800),
        (config(None), None),
        (config(0), None),
    ],
)
def test_the_largest_reading_of_a_configuration_counts(given: Any, limit: int | None) -> None:
    assert position_limit(given) == limit
