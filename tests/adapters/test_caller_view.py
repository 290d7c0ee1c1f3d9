"""Rules of a call see the caller's prompt and the new tokens, whatever was removed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import vidsieve
from vidsieve.adapters.prompt.caller_view import CallerView
from vidsieve.framework.errors import InputError
from vidsieve.testing.adapter_decoder_kit import TopKV, TopLayer
from vidsieve.testing.adapter_kit import BATCHES, HALF, STEPS, KeepRandom, Row, policy_of, run, traces

POLICIES = {
    "before": HALF,
    "layer": policy_of(KeepRandom(), TopLayer(after=(1,)), ratio=0.7),
    "kv": policy_of(KeepRandom(), TopKV(), ratio=0.5),
}
EOS = 7
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


class Recorder:
    """A stopping criterion, a logits processor and a prefix function that keep what they see."""

    def __init__(self) -> None:
        self.criteria: list[Tensor] = []
        self.processors: list[Tensor] = []
        self.prefixes: list[tuple[int, Tensor]] = []

    def options(self) -> dict[str, Any]:
        def stop(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            self.criteria.append(ids)
            return torch.zeros(len(ids), dtype=torch.bool)

        def process(ids: Tensor, scores: Tensor) -> Tensor:
            self.processors.append(ids)
            return scores

        def allowed(row: int, ids: Tensor) -> list[int]:
            self.prefixes.append((row, ids))
            return list(range(3, 80))

        return {
            "stopping_criteria": hf.StoppingCriteriaList([stop]),
            "logits_processor": hf.LogitsProcessorList([process]),
            "prefix_allowed_tokens_fn": allowed,
        }


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_rules_see_the_prompt_of_their_row_and_the_new_tokens(kit: Any, model: Any, way: Any, policy: Any) -> None:
    inputs, seen = kit.make_inputs(model, *BATCHES["uneven batch"]), Recorder()
    prompt, rows = inputs["input_ids"], way.get("num_beams", way.get("num_return_sequences", 1))
    run(model, policy, inputs, **way, **seen.options())
    width = prompt.shape[1]
    expected = prompt.repeat_interleave(rows, dim=0)
    for step, ids in enumerate(seen.processors):
        assert ids.shape[1] == width + step
        assert torch.equal(ids[:, :width], expected)
    for step, ids in enumerate(seen.criteria):
        assert ids.shape[1] == width + step + 1
        assert torch.equal(ids[:, :width], prompt.repeat_interleave(len(ids) // len(prompt), dim=0))
    assert len(seen.processors) == len(seen.criteria) == STEPS
    assert {len(ids) for _, ids in seen.prefixes} == set(range(width, width + STEPS))
    # transformers numbers the prompts for beams, and the answers otherwise
    assert all(torch.equal(ids[:width], expected[row * way.get("num_beams", 1)]) for row, ids in seen.prefixes)


def test_a_rule_that_cuts_the_prompt_off_stops_and_advances_as_without_a_policy(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    width, cycle = inputs["input_ids"].shape[1], [11, 22, 33]

    def stop(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([len(row[width:]) >= 2 for row in ids])

    def allowed(row: int, ids: Tensor) -> list[int]:
        return [cycle[len(ids[width:]) % 3]]

    for policy in POLICIES.values():
        with vidsieve.applied(model, policy):
            stopped = model.generate(**inputs, max_new_tokens=9, stopping_criteria=[stop])
            advanced = model.generate(**inputs, max_new_tokens=4, prefix_allowed_tokens_fn=allowed)
        assert stopped.shape[1] == width + 2
        assert advanced[0, width:].tolist() == [11, 22, 33, 11]


def test_a_second_turn_shows_rules_the_ids_that_the_caller_gave(kit: Any, model: Any) -> None:
    first, _ = run(model, HALF, kit.make_inputs(model, Row()))
    whole = torch.cat([first.sequences, torch.tensor([[8, 9, 10]])], dim=1)
    for ids in (whole, whole[:, -4:]):
        seen, cache = Recorder(), run(model, HALF, kit.make_inputs(model, Row()))[0].past_key_values
        given = {"input_ids": ids, "attention_mask": torch.ones_like(whole), "past_key_values": cache}
        output, _ = run(model, HALF, given, max_new_tokens=None, max_length=ids.shape[1] + 3, **seen.options())
        assert output.sequences.shape[1] == ids.shape[1] + 3
        assert torch.equal(seen.processors[0], ids)
        assert torch.equal(seen.criteria[-1], output.sequences)


SETTINGS: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Any]]] = {
    "repetition_penalty": (
        {"repetition_penalty": 1.7},
        lambda ids, mask: hf.RepetitionPenaltyLogitsProcessor(1.7, (mask != 0).int().argmax(dim=1)),
    ),
    "encoder_repetition_penalty": (
        {"encoder_repetition_penalty": 1.7},
        lambda ids, mask: hf.EncoderRepetitionPenaltyLogitsProcessor(1.7, ids),
    ),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 2}, lambda ids, mask: hf.NoRepeatNGramLogitsProcessor(2)),
    "encoder_no_repeat_ngram_size": (
        {"encoder_no_repeat_ngram_size": 1},
        lambda ids, mask: hf.EncoderNoRepeatNGramLogitsProcessor(1, ids),
    ),
    "min_new_tokens": (
        {"min_new_tokens": 3},
        lambda ids, mask: hf.MinNewTokensLengthLogitsProcessor(ids.shape[1], 3, EOS),
    ),
    "begin_suppress_tokens": (
        {"begin_suppress_tokens": [5, 6]},
        lambda ids, mask: hf.SuppressTokensAtBeginLogitsProcessor([5, 6], ids.shape[1]),
    ),
    "forced_eos_token_id": (
        {"forced_eos_token_id": 12},
        lambda ids, mask: hf.ForcedEOSTokenLogitsProcessor(ids.shape[1] + STEPS, 12),
    ),
    "exponential_decay_length_penalty": (
        {"exponential_decay_length_penalty": (1, 1.5)},
        lambda ids, mask: hf.ExponentialDecayLengthPenalty((1, 1.5), torch.tensor([EOS]), ids.shape[1]),
    ),
    "sequence_bias": (
        {"sequence_bias": [[[20, 21], 4.0], [[22], -3.0]]},
        lambda ids, mask: hf.SequenceBiasLogitsProcessor([[[20, 21], 4.0], [[22], -3.0]]),
    ),
    "watermarking_config": (
        {"watermarking_config": hf.WatermarkingConfig(context_width=9, seeding_scheme="selfhash")},
        lambda ids, mask: hf.WatermarkLogitsProcessor(100, "cpu", context_width=9, seeding_scheme="selfhash"),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_the_rule_on_the_whole_prompt_and_the_new_tokens(kit: Any, model: Any, name: str) -> None:
    setting, rule = SETTINGS[name]
    inputs = kit.make_inputs(model, *BATCHES["uneven batch"])
    options = setting | {"eos_token_id": EOS, "output_scores": True}
    output, _ = run(model, HALF, inputs, **options)
    prompt = inputs["input_ids"]
    processor, width = rule(prompt, inputs["attention_mask"]), prompt.shape[1]
    for step, (raw, scores) in enumerate(zip(output.logits, output.scores, strict=True)):
        expected = processor(output.sequences[:, : width + step], raw.clone())
        assert torch.allclose(scores, expected, equal_nan=True)


def test_a_rule_of_the_callers_own_takes_the_place_of_the_settings(kit: Any, model: Any) -> None:
    inputs, width = kit.make_inputs(model, Row()), kit.make_inputs(model, Row())["input_ids"].shape[1]
    own = hf.RepetitionPenaltyLogitsProcessor(1.3)
    output, _ = run(model, HALF, inputs, repetition_penalty=1.9, logits_processor=[own], output_scores=True)
    assert torch.allclose(output.scores[1], own(output.sequences[:, : width + 1], output.logits[1].clone()))
    stop = hf.StoppingCriteriaList([hf.MaxLengthCriteria(width + 2)])
    assert run(model, HALF, inputs, max_new_tokens=6, stopping_criteria=stop)[0].sequences.shape[1] == width + 2


def test_rules_of_the_caller_that_count_tokens_count_those_of_the_whole_prompt(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    width = inputs["input_ids"].shape[1]
    longest, least = hf.MaxLengthCriteria(width + 3), hf.MinNewTokensLengthLogitsProcessor(width, 2, list(range(80)))
    with vidsieve.applied(model, HALF):
        output = model.generate(**inputs, max_new_tokens=9, stopping_criteria=[longest])
        scores = model.generate(
            **inputs, max_new_tokens=3, logits_processor=[least], return_dict_in_generate=True, output_scores=True
        ).scores
    assert output.shape[1] == width + 3
    assert [bool(torch.isinf(step[:, :80]).all()) for step in scores] == [True, True, False]
    assert (longest.max_length, least.prompt_length_to_skip) == (width + 3, width), "the caller's own stay as they are"


def test_the_prompt_is_put_together_for_rules_that_read_it_alone(
    kit: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(CallerView, "__call__", lambda self, ids: made.append(ids) or ids)
    inputs = kit.make_inputs(model, Row())
    lengths = {"min_new_tokens": 2, "do_sample": True, "top_k": 5, "top_p": 0.9, "max_time": 60.0, "eos_token_id": EOS}
    run(model, HALF, inputs, **lengths)
    assert not made
    run(model, HALF, inputs, repetition_penalty=1.7)
    assert len(made) == STEPS


def test_messages_name_the_lengths_of_the_caller(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    width = inputs["input_ids"].shape[1]
    for longest in (3, width - 1, width):
        with (
            vidsieve.applied(model, HALF),
            pytest.raises(ValueError, match=f"is {width}, but `max_length` is set to {longest}\\."),
        ):
            model.generate(**inputs, max_length=longest)
    with vidsieve.applied(model, HALF):
        with pytest.warns(UserWarning, match=rf"`min_length` \({width + 9}\).*maximum possible length \({width + 2}\)"):
            model.generate(**inputs, max_new_tokens=2, min_length=width + 9)
        with pytest.warns(UserWarning, match=rf"prompt length \({width}\).*length \({width + 2}\)"):
            model.generate(**inputs, max_length=width + 2, min_new_tokens=9)
        with pytest.warns(UserWarning, match=rf"`max_length` \(={width + 20}\)"):
            assert model.generate(**inputs).shape[1] == width + 20


def test_a_custom_decoding_loop_is_given_rules_that_see_the_prompt(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    width, seen = inputs["input_ids"].shape[1], Recorder()

    def loop(model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, **kwargs: Any) -> Tensor:
        done = False
        while not done:
            scores = logits_processor(input_ids, torch.zeros(len(input_ids), 100))
            input_ids = torch.cat([input_ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
            done = bool(stopping_criteria(input_ids, None).all())
        return input_ids

    with vidsieve.applied(model, HALF):
        output = model.generate(**inputs, max_new_tokens=2, custom_generate=loop, **seen.options())
        other = model.generate(**inputs, custom_generate=lambda model, input_ids, **kwargs: {"answer": "yes"})
    assert output.shape[1] == width + 2
    assert torch.equal(output[:, :width], inputs["input_ids"])
    assert torch.equal(seen.criteria[-1], output)
    assert other == {"answer": "yes"}


def test_stop_strings_and_max_time_still_stop(kit: Any, model: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(100)} | {"abcdef": 100}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=words)
    inputs = kit.make_inputs(model, Row())
    width = inputs["input_ids"].shape[1]
    third = f"<{run(model, HALF, inputs)[0].sequences[0, width + 2]}>"
    output, _ = run(model, HALF, inputs, max_new_tokens=9, stop_strings=[third], tokenizer=tokenizer)
    assert output.sequences.shape[1] <= width + 3
    assert run(model, HALF, inputs, max_time=0.0)[0].sequences.shape[1] == width + 1


def test_drafts_of_an_assistant_are_made_under_the_same_rules(kit: Any, model: Any) -> None:
    inputs, width = kit.make_inputs(model, Row()), kit.make_inputs(model, Row())["input_ids"].shape[1]

    def allowed(row: int, ids: Tensor) -> list[int]:
        return [[11, 22, 33][len(ids[width:]) % 3]]

    output, _ = run(model, HALF, inputs, prompt_lookup_num_tokens=2, prefix_allowed_tokens_fn=allowed)
    assert output.sequences[0, width:].tolist() == [11, 22, 33, 11]


def test_guidance_by_a_processor_is_refused_as_the_setting_is(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    guide = hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model)
    for options in ({"guidance_scale": 1.5}, {"logits_processor": [guide]}):
        with pytest.raises(InputError, match="guidance"):
            run(model, HALF, inputs, **options)


def test_the_model_makes_its_own_rules_again_after_a_call(kit: Any, model: Any) -> None:
    inputs, state = kit.make_inputs(model, Row()), traces(model)
    run(model, HALF, inputs)

    def breaks(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        raise ZeroDivisionError("in a rule")

    with pytest.raises(ZeroDivisionError, match="in a rule"):
        run(model, HALF, inputs, stopping_criteria=[breaks])
    assert traces(model) == state
    assert not {name for name in vars(model) if name.startswith(("_get_logits", "_get_stopping", "_validate"))}
