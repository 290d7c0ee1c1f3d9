"""Which models share a cached prefix, where it ends, and that every attention kernel goes on from it alike."""

from typing import Any

import pytest
import torch
from adapters import test_ernie4_5_vl, test_llava_next_video, test_llava_onevision, test_qwen2_5_vl, test_qwen2_vl
from adapters.kernels import KERNELS, kernel
from adapters.kits import kits

import vidsieve.adapters.prefix_sharing as sharing
from vidsieve.adapters.apply import adapter_for
from vidsieve.testing.adapter_kit import HALF, Row
from vidsieve.testing.adapter_reuse import PrefixLaws

WINDOWED_OR_LINEAR = {"gemma4", "qwen3.5"}


@pytest.fixture
def qwen() -> Any:
    return test_qwen2_vl.TestQwen2VL().build_model()


@pytest.mark.parametrize("family", sorted(kits()))
def test_a_family_shares_unless_layers_see_a_window_or_are_linear(family: str) -> None:
    assert sharing.shares_prefixes(kits()[family]().build_model()) is (family not in WINDOWED_OR_LINEAR)


@pytest.mark.parametrize(
    ("name", "value"),
    [("cache_implementation", "static"), ("use_cache", False), ("prompt_lookup_num_tokens", 2)],
)
def test_a_model_that_generates_with_another_cache_or_none_does_not_share(qwen: Any, name: str, value: Any) -> None:
    setattr(qwen.generation_config, name, value)
    assert not sharing.shares_prefixes(qwen)


def test_one_windowed_layer_is_enough_not_to_share(qwen: Any) -> None:
    config = qwen.config.get_text_config()
    config.sliding_window = 8
    config.layer_types = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert not sharing.shares_prefixes(qwen)


def test_experts_share_only_where_transformers_cuts_their_types(monkeypatch: pytest.MonkeyPatch, qwen: Any) -> None:
    ernie = test_ernie4_5_vl.TestErnie45VL().build_model()
    monkeypatch.setattr(sharing, "cuts_types_for_a_cache", lambda: False)
    assert not sharing.shares_prefixes(ernie)
    assert sharing.shares_prefixes(qwen)


@pytest.mark.parametrize("kit", [test_qwen2_5_vl.TestQwen25VL, test_llava_onevision.TestLlavaOnevision])
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_goes_on_from_a_prefix(kit: type[PrefixLaws], name: str) -> None:
    model = kit().build_model()
    with kernel(model, name):
        kit().test_prompts_behind_one_prefix_answer_as_each_alone(model, HALF)


@pytest.mark.parametrize(
    ("kit", "behind"),
    [
        (test_qwen2_vl.TestQwen2VL, 1),  # text goes on from the longest axis, so a text token is needed
        (test_llava_next_video.TestLlavaNextVideo, 1),  # the last visual token may go, and its position with it
        (test_llava_onevision.TestLlavaOnevision, 0),  # the newline row stays
    ],
)
def test_a_prefix_ends_in_a_token_that_stays(kit: type[PrefixLaws], behind: int) -> None:
    model = kit().build_model()
    inputs = kit().make_inputs(model, Row())
    adapter = adapter_for(model)
    ids = inputs["input_ids"][0]
    last = int(ids.eq(model.config.video_token_id).nonzero().max())
    other = ids.clone()
    for place in range(last + 1 + behind, len(ids)):
        other[place] = 3 + (other[place] - 2) % 70
    assert sharing.shared_columns(adapter, model, inputs, [ids, other]) == last + 1 + behind
    other[last + behind] = 3 + (other[last + behind] - 2) % 70
    assert sharing.shared_columns(adapter, model, inputs, [ids, other]) == 0


def test_a_prompt_without_a_video_shares_nothing(qwen: Any) -> None:
    inputs = test_qwen2_vl.TestQwen2VL().make_inputs(qwen, Row(videos=0))
    ids = inputs["input_ids"][0]
    assert sharing.shared_columns(adapter_for(qwen), qwen, inputs, [ids, torch.cat([ids, ids])]) == 0
