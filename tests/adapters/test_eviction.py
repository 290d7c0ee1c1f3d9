"""Visual entries that leave the KV cache for good: what is left answers as masks do, and the rest is let go."""

import copy
import weakref
from typing import Any

import pytest
import torch
from adapters.kernels import KERNELS, kernel
from adapters.test_llava_onevision import TestLlavaOnevision as LlavaOnevision
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from torch import Tensor
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, StaticCache
from transformers.cache_utils import DynamicLayer

from vidsieve.adapters.decoder.layer_pruning import attach_layers
from vidsieve.framework.errors import InputError, PlanError, PolicyError, StageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import PromptKV
from vidsieve.testing.adapter_decoder_kit import Force, KeepKeys, TopKV, TopLayer, masked
from vidsieve.testing.adapter_kit import (
    BATCHES,
    STEPS,
    KeepRandom,
    Row,
    logits,
    policy_of,
    run,
    unpatched,
    visual_places,
)

KITS: dict[str, Any] = {"three axes": Qwen2VL(), "one axis": LlavaOnevision()}
EVICT = policy_of(KeepKeys())


@pytest.fixture(params=KITS.values(), ids=KITS)
def kit(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(kit: Any) -> Any:
    return kit.build_model()


def gone_by_hand(model: Any, inputs: dict[str, Any], ratio: float) -> Tensor:
    """Columns whose keys are longest in the cache of the unpatched model, for each layer."""
    cache = unpatched(model, inputs, max_new_tokens=1).past_key_values
    visual = visual_places(model, inputs).nonzero().squeeze(1)
    gone = torch.zeros(len(cache.layers), inputs["input_ids"].shape[1], dtype=torch.bool)
    for number, layer in enumerate(cache.layers[1:], start=1):
        long = layer.keys[0, :, visual].norm(dim=-1).mean(dim=0)
        gone[number, visual[long.argsort(stable=True)[int(len(visual) * ratio) :]]] = True
    return gone


def expected_logits(model: Any, inputs: dict[str, Any], ids: Tensor, gone: Tensor) -> Tensor:
    """A full-length run of the unpatched model in which new tokens do not see what is gone, and the prompt does."""
    prompt = inputs["input_ids"].shape[1]
    unread = torch.zeros(len(gone), ids.shape[1], ids.shape[1], dtype=torch.bool)
    unread[:, prompt:, :prompt] = gone[:, None]
    return masked(model, inputs, ids, torch.zeros_like(gone), unread=unread)[0]


@pytest.mark.parametrize("attention", KERNELS)
def test_what_is_left_equals_masks_in_the_unpatched_model(kit: Any, model: Any, attention: str) -> None:
    inputs = kit.make_inputs(model, Row(videos=2))
    with kernel(model, attention):
        output, report = run(model, EVICT, inputs)
    ids, gone = output.sequences[:, :-1], gone_by_hand(model, inputs, 0.4)
    expected = expected_logits(model, inputs, ids, gone)
    assert torch.allclose(logits(output)[0], expected[-STEPS:], atol=1e-5)
    assert not torch.allclose(logits(output), logits(unpatched(model, inputs)), atol=1e-3)
    layers, visual = len(gone), report.kept_tokens
    left = visual + (layers - 1) * int(visual * 0.4)
    assert report.kv_ratio == pytest.approx(left / (layers * visual))
    assert report.kv_resident_bytes == pytest.approx(report.kv_full_bytes * report.kv_ratio)
    first = output.past_key_values.layers[0].keys
    assert report.kv_full_bytes == 2 * layers * visual * first[0, :, 0].numel() * first.element_size()
    assert (report.attained_ratio, report.not_run) == (1.0, ())


def test_the_old_keys_and_values_are_let_go_layer_by_layer(
    kit: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[Any] = []
    alive: list[int] = []
    update = DynamicLayer.update

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        alive.append(sum(one() is not None for one in whole))
        keys, values = update(self, *args, **kwargs)
        if self.keys.shape[2] == args[0].shape[2]:
            whole.extend((weakref.ref(keys), weakref.ref(values)))
        return keys, values

    monkeypatch.setattr(DynamicLayer, "update", watched)
    cache = run(model, EVICT, kit.make_inputs(model, *BATCHES["uneven batch"]))[0].past_key_values
    layers = len(cache.layers)
    # of the layers before, only the first still has all; in the first decode step even its tensors were grown
    assert max(alive[:layers]) <= 2
    assert [one() for one in whole] == [None] * (2 * layers)
    for layer in cache.layers:
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * layer.keys.element_size()
    assert all(layer.keys.shape[2] < cache.layers[0].keys.shape[2] for layer in cache.layers[1:])


@pytest.mark.parametrize("attention", KERNELS)
def test_rows_of_a_batch_answer_as_alone(kit: Any, model: Any, attention: str) -> None:
    rows, policy = BATCHES["uneven batch"], policy_of(KeepRandom(), KeepKeys(), ratio=0.6)
    with kernel(model, attention):
        together, _ = run(model, policy, kit.make_inputs(model, *rows))
        for index, row in enumerate(rows):
            alone, _ = run(model, policy, kit.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=kit.tolerance)


def test_beams_answer_as_their_sequences_forced(kit: Any, model: Any) -> None:
    rows = BATCHES["uneven batch"]
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "output_scores": True}
    output, report = run(model, EVICT, kit.make_inputs(model, *rows), **options)
    for index, sequence in enumerate(output.sequences):
        inputs, new = kit.make_inputs(model, rows[index // 2]), sequence[-STEPS:]
        forced, _ = run(model, EVICT, inputs, logits_processor=[Force(new, inputs["input_ids"].shape[1])])
        each = logits(forced)[0].log_softmax(-1).gather(1, new[:, None]).sum()
        assert torch.allclose(each, output.sequences_scores[index], atol=1e-4)
    assert report.kv_ratio == run(model, EVICT, kit.make_inputs(model, *rows))[1].kv_ratio


def test_a_second_turn_sees_what_is_left_and_new_tokens_whole(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row(videos=2))
    first, _ = run(model, EVICT, inputs)
    cropped = copy.deepcopy(first.past_key_values)
    new = torch.tensor([[kit.words[word] for word in (7, 8, 9)]])
    ids = torch.cat([first.sequences, new], dim=1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    second, report = run(model, EVICT, {**turn, "past_key_values": first.past_key_values})
    assert report.not_run == ("stage-0",)  # nothing new to choose among
    ids, gone = second.sequences[:, :-1], gone_by_hand(model, inputs, 0.4)
    expected = expected_logits(model, inputs, ids, gone)
    assert torch.allclose(logits(second)[0], expected[-STEPS:], atol=1e-5)
    cropped.crop(-1)
    again, _ = run(model, policy_of(), {**turn, "past_key_values": cropped})
    assert torch.allclose(logits(second), logits(again), atol=1e-5)


def test_a_video_of_a_later_turn_is_cut_and_earlier_ones_are_not_cut_again(kit: Any, model: Any) -> None:
    first, _ = run(model, EVICT, kit.make_inputs(model, Row()))
    lengths = [layer.keys.shape[2] for layer in first.past_key_values.layers]
    later = kit.make_inputs(model, Row(seed=3))
    ids = torch.cat([first.sequences, later["input_ids"]], dim=1)
    turn = later | {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | kit.token_types(model, ids)
    output, report = run(model, EVICT, turn | {"past_key_values": first.past_key_values})
    visual = report.kept_tokens
    grown = [layer.keys.shape[2] - old for layer, old in zip(output.past_key_values.layers, lengths, strict=True)]
    assert [grown[0] - one for one in grown[1:]] == [visual - int(visual * 0.4)] * (len(grown) - 1)


def test_decode_chooses_among_what_is_left(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    alone, first = run(model, EVICT, inputs)
    output, report = run(model, policy_of(KeepKeys(), TopKV(ratio=0.5)), inputs)
    assert not torch.allclose(logits(output), logits(alone), atol=1e-4)
    layers, visual = len(output.past_key_values.layers), report.kept_tokens
    left = int(visual * 0.4)
    # layers hold different entries, and of those chosen after layer 1 each reads what it holds
    assert report.kv_ratio <= (visual + left + (layers - 2) * left) / (layers * visual)
    assert report.kv_ratio < first.kv_ratio
    assert (report.kv_full_bytes, report.kv_resident_bytes) == (first.kv_full_bytes, first.kv_resident_bytes)


def test_behind_a_cut_of_the_prompt_each_layer_keeps_a_share_of_what_came_to_it(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, *BATCHES["uneven batch"])
    cut = TopLayer(keep_ratio=0.5, after=(1,))
    output, report = run(model, policy_of(cut, KeepKeys(ratio=0.5)), inputs)
    for index, row in enumerate(BATCHES["uneven batch"]):
        alone, _ = run(model, policy_of(cut, KeepKeys(ratio=0.5)), kit.make_inputs(model, row))
        assert torch.allclose(logits(output)[index], logits(alone)[0], atol=kit.tolerance)
    entered = [sum(counts) for counts in zip(*report.layer_tokens, strict=True)]
    assert report.kv_ratio < (entered[0] + 0.5 * sum(entered[1:])) / sum(entered) + 0.01


def test_what_cannot_let_go_is_refused_in_words(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    text = model.config.get_text_config()
    for options in (
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 8},
        {"use_cache": False},
        {"past_key_values": StaticCache(config=text, max_cache_len=200)},
    ):
        with pytest.raises((PolicyError, InputError), match=next(iter(options)) + "|leave use_cache on"):
            run(model, EVICT, inputs, **options)
    for stage, words in (
        (KeepKeys(first=4), "names the decoder layers none"),
        (KeepKeys(first=-1), "names the decoder layers -1"),
    ):
        with pytest.raises(PolicyError, match=words):
            run(model, policy_of(stage), inputs)
    with pytest.raises(PolicyError, match=r"stage-1.*another stage"):
        run(model, policy_of(KeepKeys(), KeepKeys(first=3)), inputs)
    with pytest.raises(PolicyError, match="positions: compact"):
        run(model, policy_of(TopLayer(), KeepKeys(), ratio=0.7, positions="compact"), inputs)


class Wrong(KeepKeys):
    how: str = "raises"

    @hookimpl
    def evict_kv(self, entries: PromptKV) -> Scores:
        if self.how == "raises":
            raise ZeroDivisionError("on purpose")
        scores = torch.zeros(entries.valid.shape)
        return Scores({"nan": scores / 0, "half": scores.half(), "long": torch.zeros(1, 999)}[self.how])


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("raises", StageError, "ZeroDivisionError"),
        ("nan", PlanError, "finite"),
        ("half", PlanError, "float32"),
        ("long", PlanError, "shape"),
    ],
)
def test_a_wrong_answer_names_the_stage_and_leaves_the_model_as_it_was(
    kit: Any, model: Any, how: str, error: type[Exception], words: str
) -> None:
    inputs = kit.make_inputs(model, Row())
    before = logits(unpatched(model, inputs))
    for steps in (1, STEPS):
        with pytest.raises(error, match=f"stage-0.*evict_kv.*{words}"):
            run(model, policy_of(Wrong(how=how)), inputs, max_new_tokens=steps)
    assert torch.equal(before, logits(unpatched(model, inputs)))


def test_a_stage_is_shown_the_text_behind_the_video_row_by_row(kit: Any, model: Any) -> None:
    rows, seen = BATCHES["uneven batch"], []

    class Looks(KeepKeys):
        @hookimpl
        def evict_kv(self, entries: PromptKV) -> Scores:
            seen.append(entries.attention(4))
            return Scores(entries.attention(1000).sum(dim=(1, 2)))

    run(model, policy_of(Looks()), kit.make_inputs(model, *rows))
    together = seen[:3]
    for index, row in enumerate(rows):
        seen.clear()
        run(model, policy_of(Looks()), kit.make_inputs(model, row))
        for layer, alone in enumerate(seen[:3]):
            visual = alone.shape[-1]
            assert torch.allclose(together[layer][index, :, -alone.shape[2] :, :visual], alone[0], atol=1e-5)
            assert not together[layer][index, :, :, visual:].any()
    # a row of attention is what the model's own eager path gives
    inputs = kit.make_inputs(model, rows[0])
    model.set_attn_implementation("eager")
    seen.clear()
    run(model, policy_of(Looks()), inputs)
    ids = inputs["input_ids"]
    _, output = masked(model, inputs, ids, torch.zeros(4, ids.shape[1], dtype=torch.bool), eager=True)
    expected = output.attentions[1][0, :, -1][:, visual_places(model, inputs)]
    assert torch.allclose(seen[0][0, :, -1], expected, atol=1e-5)


def mixed() -> Qwen2ForCausalLM:
    """A text model whose layers 1 and 3 see a window of eight tokens."""
    torch.manual_seed(0)
    kinds = ["full_attention", "sliding_attention"] * 2
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=kinds,
    )
    return Qwen2ForCausalLM(config).eval()


@torch.no_grad()
def test_sliding_layers_are_left_alone_and_the_full_ones_behind_the_first_are_cut() -> None:
    model, draw = mixed(), torch.Generator().manual_seed(1)
    ids, steps = torch.randint(1, 97, (1, 30), generator=draw), torch.randint(1, 97, (4, 1, 1), generator=draw)

    def decoded(policy: Any) -> tuple[Tensor, Any]:
        with attach_layers(model, policy, (3, 20)):
            output = model(input_ids=ids, past_key_values=DynamicCache(config=model.config))
            found = []
            for step in steps:
                place = torch.tensor([[30 + len(found)]])
                options = {"past_key_values": output.past_key_values, "position_ids": place}
                output = model(input_ids=step, **options)
                found.append(output.logits)
        return torch.cat(found), output.past_key_values

    whole, _ = decoded(policy_of(KeepKeys(ratio=1.0)))
    few, cache = decoded(policy_of(KeepKeys(ratio=0.25)))
    assert [layer.keys.shape[2] for layer in cache.layers] == [34, 7, 19, 7]
    assert not torch.allclose(whole, few, atol=1e-4)
    plain = model(input_ids=torch.cat([ids, steps[:, 0].T], dim=1)).logits[0, 30:]
    assert torch.allclose(whole[:, 0], plain, atol=1e-5)
