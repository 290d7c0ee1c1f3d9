"""Assisted and prompt-lookup decoding: exact for greedy decoding, or refused before the model runs."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from adapters.kernels import kernel
from adapters.test_llava_onevision import TestLlavaOnevision as LlavaOnevision
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from adapters.tiny import IMAGE, VIDEO

import vidsieve
from vidsieve.framework.errors import InputError, PolicyError, UsageError
from vidsieve.testing.adapter_decoder_kit import TopKV, TopLayer
from vidsieve.testing.adapter_kit import HALF, KeepRandom, Row, logits, policy_of, run

KITS: dict[str, Any] = {"three axes": Qwen2VL(), "one axis": LlavaOnevision()}
POLICIES = {
    "before the model": HALF,
    "KV": policy_of(TopKV(ratio=0.3)),
    "KV twice": policy_of(KeepRandom(), TopKV(after=0), TopKV(ratio=0.5, after=2), TopKV(after=2), ratio=0.5),
    "KV parked": policy_of(TopKV(after=0), TopKV(ratio=0.5, after=1, parked=True)),
    "dycoke": vidsieve.load_policy("dycoke", retention_ratio=0.5),
}
LONG = {"max_new_tokens": 12, "suppress_tokens": [IMAGE, VIDEO]}  # as candidates they would want a picture


@pytest.fixture(params=KITS.values(), ids=KITS)
def kit(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(kit: Any) -> Any:
    return kit.build_model()


@contextmanager
def widths(model: Any) -> Iterator[list[int]]:
    """While open, the tokens of each pass of the decoder."""
    found: list[int] = []

    def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["inputs_embeds"].shape[1])

    handle = model.get_decoder().register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def ways(kit: Any, model: Any) -> dict[str, dict[str, Any]]:
    """A helper that mostly agrees, one that never does, and candidates from the prompt, whatever they are worth."""
    stranger = copy.deepcopy(model)
    stranger.lm_head.weight.data = stranger.lm_head.weight.data.flip(0)
    helpers = {"agrees": copy.deepcopy(model), "disagrees": stranger}
    for helper in helpers.values():
        helper.generation_config.suppress_tokens = LONG["suppress_tokens"]
    return {name: {"assistant_model": one} for name, one in helpers.items()} | {
        "lookup": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    }


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_candidates_change_neither_tokens_nor_logits_nor_what_was_read(kit: Any, model: Any, policy: Any) -> None:
    inputs = kit.make_inputs(model, Row(videos=2))
    alone, expected = run(model, policy, inputs, **LONG)
    for name, options in ways(kit, model).items():
        with widths(model) as passes:
            output, report = run(model, policy, inputs, **LONG, **options)
        assert max(passes[1:]) > 1, name
        assert torch.equal(output.sequences, alone.sequences), name
        assert torch.allclose(logits(output), logits(alone), atol=kit.tolerance), name
        assert report.kv_ratio == expected.kv_ratio, name
        assert report.not_run == expected.not_run


@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_every_kernel_agrees(kit: Any, model: Any, attention: str) -> None:
    inputs, policy = kit.make_inputs(model, Row(videos=2)), POLICIES["KV twice"]
    with kernel(model, attention):
        alone, expected = run(model, policy, inputs, **LONG)
        output, report = run(model, policy, inputs, **LONG, **ways(kit, model)["lookup"])
    assert torch.allclose(logits(output), logits(alone), atol=kit.tolerance)
    assert report.kv_ratio == expected.kv_ratio


def test_a_cache_left_by_speculation_is_continued_without_it(kit: Any, model: Any) -> None:
    inputs, policy = kit.make_inputs(model, Row()), POLICIES["KV twice"]
    options, caches = ways(kit, model), []
    for speculates in ({}, options["lookup"]):
        first, _ = run(model, policy, inputs, **LONG, **speculates)
        ids = torch.cat([first.sequences, torch.tensor([[kit.words[7], kit.words[8]]])], dim=1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": first.past_key_values}
        with pytest.raises(InputError, match=r"(assistant_model|prompt_lookup).*past_key_values"):
            run(model, policy, turn, **options["lookup"])
        caches.append(run(model, policy, turn, **LONG))
    (alone, expected), (output, report) = caches
    assert torch.allclose(logits(output), logits(alone), atol=kit.tolerance)
    assert report.kv_ratio == expected.kv_ratio


def test_a_pass_of_several_tokens_by_hand_equals_single_ones(kit: Any, model: Any) -> None:
    from vidsieve.adapters.decoder.decode_kv import attach_kv

    lm, ids = model.get_decoder(), torch.tensor([[kit.words[place % 70] for place in range(3, 40)]])
    found = []
    for parts in ([30, 1, 1, 1, 1, 1, 1, 1], [30, 4, 3]):
        with attach_kv(model, [TopKV()], (4, 20)) as decode:
            cache, hidden = None, []
            for part in ids.split(parts, dim=1):
                output = lm(input_ids=part, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                hidden.append(output.last_hidden_state)
            found.append((torch.cat(hidden, dim=1), decode.read_ratio))
    assert torch.allclose(found[0][0], found[1][0], atol=kit.tolerance)
    assert found[0][1] == found[1][1]
    assert found[0][1] is not None


def test_what_cannot_speculate_is_refused(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    layers = policy_of(TopLayer(), ratio=0.7)
    for options in ways(kit, model).values():
        with pytest.raises(PolicyError, match=r"cannot run with (assistant_model|prompt_lookup_num_tokens)"):
            run(model, layers, inputs, **options)
    with pytest.raises(InputError, match=r"assistant_model.* is the compressed model itself"):
        run(model, HALF, inputs, assistant_model=model)
    with pytest.raises(InputError, match="assistant_early_exit"):
        run(model, HALF, inputs, assistant_early_exit=2)
    with pytest.raises(InputError, match=r"cache_implementation.*paged"):
        run(model, HALF, inputs, cache_implementation="paged")


@pytest.mark.parametrize("policy", [HALF, POLICIES["KV"]], ids=["before the model", "KV"])
def test_other_ways_to_generate_are_refused_inside_the_block_only(kit: Any, model: Any, policy: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    before = model.generate
    ways: dict[str, Callable[[], Any]] = {
        "the class's": lambda: type(model).generate(model, **inputs, max_new_tokens=2),
        "one taken before": lambda: before(**inputs, max_new_tokens=2),
        "of text": lambda: type(model).generate(model, inputs["input_ids"][:, :3], max_new_tokens=2),
        "in batches": lambda: model.generate_batch([[3, 4, 5]], max_new_tokens=2),
        "a manager": lambda: model.init_continuous_batching(),
    }
    state = set(vars(model))
    with vidsieve.applied(model, policy) as handle:
        for name, way in ways.items():
            with pytest.raises(UsageError, match=r"would generate without policy.*model\.generate"):
                pytest.fail(f"{name}: {way()}")
        model.generate(**inputs, max_new_tokens=2)
        copied = copy.deepcopy(model)
    assert len(handle.reports) == 1
    assert set(vars(model)) == state
    assert set(vars(copied)) == state
    assert ways["the class's"]().shape[1] == inputs["input_ids"].shape[1] + 2
