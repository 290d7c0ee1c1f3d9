"""Laws of a call: what callers of `generate` get back, go on from, and are refused."""

import copy
from typing import Any

import pytest
import torch

import vidsieve
from vidsieve.framework.errors import InputError, PolicyError, StageError, UsageError
from vidsieve.framework.records import INPUTS, SIGNALS
from vidsieve.framework.report import Report
from vidsieve.testing.adapter_kit import (
    ALL,
    BATCHES,
    HALF,
    STEPS,
    Breaks,
    KeepAll,
    ModelKit,
    Row,
    adapter_for,
    kept_columns,
    logits,
    policy_of,
    rows_removed,
    run,
    traces,
    unpatched,
    visual_places,
)


class CallLaws(ModelKit):
    """Everything around one call of `generate`."""

    def test_returned_ids_hold_the_original_prompt(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(), Row(seed=1, words=8))
        prompt = inputs["input_ids"]
        with vidsieve.applied(model, HALF):
            plain = model.generate(**inputs, max_new_tokens=3)
        assert torch.equal(plain[:, : prompt.shape[1]], prompt)
        assert plain.shape[1] == prompt.shape[1] + 3

    def test_returned_ids_of_several_answers_hold_it_too(self, model: Any) -> None:
        self.uses("beams")
        inputs = self.make_inputs(model, Row(), Row(seed=1, words=8))
        prompt = inputs["input_ids"]
        with vidsieve.applied(model, HALF):
            drawn = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
        assert torch.equal(drawn[:, : prompt.shape[1]], prompt.repeat_interleave(2, dim=0))

    @pytest.mark.parametrize("rows", [BATCHES["two videos"], BATCHES["uneven batch"]], ids=["b1", "b2"])
    def test_beams_are_those_of_each_row_alone(self, model: Any, rows: tuple[Row, ...]) -> None:
        self.uses("beams")
        options = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True}
        inputs = self.make_inputs(model, *rows)
        if self.unpatched_beams_work:
            before = unpatched(model, inputs, **options).sequences
            assert torch.equal(before, run(model, ALL, inputs, **options)[0].sequences)
        together = run(model, HALF, inputs, **options)[0]
        for index, row in enumerate(rows):
            alone = run(model, HALF, self.make_inputs(model, row), **options)[0]
            found = slice(3 * index, 3 * index + 3)
            assert torch.equal(together.sequences[found, -STEPS:], alone.sequences[:, -STEPS:])
            assert torch.allclose(together.sequences_scores[found], alone.sequences_scores, atol=1e-4)

    def test_max_and_min_length_count_the_original_prompt(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        width = inputs["input_ids"].shape[1]
        with vidsieve.applied(model, HALF):
            assert model.generate(**inputs, max_length=width + 4).shape[1] == width + 4
            model.generation_config.max_length = width + 2
            assert model.generate(**inputs, min_length=width + 2).shape[1] == width + 2

    def test_a_streamer_sees_the_original_prompt_once_and_rules_see_it_always(self, model: Any) -> None:
        seen: list[torch.Tensor] = []
        ruled: list[torch.Tensor] = []

        def stop(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            ruled.append(ids)
            return torch.zeros(len(ids), dtype=torch.bool)

        class Streamer:
            ended = 0

            def put(self, value: torch.Tensor) -> None:
                seen.append(value)

            def end(self) -> None:
                self.ended += 1

        inputs, streamer = self.make_inputs(model, Row()), Streamer()
        with vidsieve.applied(model, HALF):
            output = model.generate(**inputs, max_new_tokens=3, streamer=streamer, stopping_criteria=[stop])
        assert torch.equal(seen[0], inputs["input_ids"])
        assert torch.equal(torch.cat([part.flatten() for part in seen]), output[0])
        assert streamer.ended == 1
        assert all(torch.equal(ids, output[:, : ids.shape[1]]) for ids in ruled)
        assert torch.equal(ruled[-1], output)

    @pytest.mark.parametrize("new_ids_only", [False, True])
    def test_a_second_turn_goes_on_from_the_cache(self, model: Any, new_ids_only: bool) -> None:
        self.uses("second turn")
        inputs = self.make_inputs(model, Row())
        first, _ = run(model, HALF, inputs)
        turn = torch.tensor([[self.words[i] for i in (7, 8, 9)]])
        whole = torch.cat([first.sequences, turn], dim=1)
        again = inputs | self.token_types(model, whole)
        again |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        fresh, _ = run(model, HALF, again)
        ids = whole[:, -4:] if new_ids_only else whole
        warm, report = run(model, HALF, again | {"input_ids": ids, "past_key_values": first.past_key_values})
        assert torch.allclose(logits(fresh), logits(warm), atol=self.tolerance)
        assert torch.equal(warm.sequences[:, :-STEPS], ids)
        assert report.baseline_tokens == 0

    def test_a_third_turn_with_a_new_video_goes_on_too(self, model: Any) -> None:
        self.uses("second turn")
        output, _ = run(model, HALF, self.make_inputs(model, Row()))
        second = self.make_inputs(model, Row(seed=3, videos=0))["input_ids"]
        third = self.make_inputs(model, Row(seed=4))
        whole = torch.cat([output.sequences, second], dim=1)
        output, _ = run(model, HALF, {"input_ids": whole, "past_key_values": output.past_key_values})
        whole = torch.cat([output.sequences, third["input_ids"]], dim=1)
        new = third | self.token_types(model, whole)
        new |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        full = new | self.join([[self.make_video(0), self.make_video(40)]])
        cache = copy.deepcopy(output.past_key_values)
        warm, report = run(model, HALF, new | {"past_key_values": output.past_key_values})
        assert len(report.keeps) == 1
        assert report.attained_ratio == 0.5
        both, other = run(model, HALF, full | {"past_key_values": cache})
        assert torch.equal(logits(both), logits(warm))
        assert torch.equal(other.keeps[0], report.keeps[0])
        keep = kept_columns(model, full, Report.combine([self._first(model), report]))
        assert torch.allclose(logits(warm)[0], rows_removed(model, full, keep, STEPS), atol=self.tolerance)

    def _first(self, model: Any) -> Report:
        report = run(model, HALF, self.make_inputs(model, Row()))[1]
        return report

    @pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
    def test_a_cache_with_several_rows_a_prompt_is_refused(self, model: Any, options: dict[str, Any]) -> None:
        self.uses_options(options)
        first, _ = run(model, HALF, self.make_inputs(model, Row()), **options)
        turn = torch.cat([first.sequences, first.sequences[:, -3:]], dim=1)
        with pytest.raises(InputError, match="beams"):
            run(model, HALF, {"input_ids": turn, "past_key_values": first.past_key_values})

    def test_a_cache_cropped_into_its_prompt_is_refused(self, model: Any) -> None:
        self.uses("crop")
        first, _ = run(model, HALF, self.make_inputs(model, Row()))
        first.past_key_values.crop(-STEPS - 3)
        with pytest.raises(InputError, match="cropped"):
            run(model, HALF, {"input_ids": first.sequences, "past_key_values": first.past_key_values})

    def test_a_new_video_behind_a_cache_filled_elsewhere_is_refused(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        cache = unpatched(model, inputs).past_key_values
        with pytest.raises(InputError, match="was not filled"):
            run(model, HALF, inputs | {"past_key_values": cache})

    def test_a_conversation_that_does_not_go_on_from_the_cache_is_refused(self, model: Any) -> None:
        first, _ = run(model, HALF, self.make_inputs(model, Row()))
        other = self.make_inputs(model, Row(seed=5, words=20))
        with pytest.raises(InputError, match="do not continue"):
            run(model, HALF, other | {"past_key_values": first.past_key_values})

    def test_placeholders_that_do_not_fit_are_refused_before_anything_runs(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        short = {name: inputs[name][:, :-8] for name in ("input_ids", "attention_mask")}
        cut = int(visual_places(model, inputs).nonzero().min())
        fewer = {name: torch.cat([v[:, :cut], v[:, cut + 1 :]], dim=1) for name, v in short.items()}
        encoder = f"get_{adapter_for(model).modality}_features"
        setattr(model.base_model, encoder, lambda *a, **k: pytest.fail("the vision tower ran"))
        with pytest.raises(InputError, match="placeholders"):
            run(model, HALF, inputs | fewer)
        with pytest.raises(InputError, match="no video came"):
            run(model, HALF, {name: inputs[name] for name in ("input_ids", "attention_mask")})
        delattr(model.base_model, encoder)

    def test_embeddings_instead_of_ids_are_refused_with_a_video(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        with pytest.raises(InputError, match="input_ids"):
            run(model, HALF, inputs | {"inputs_embeds": embeds})

    def test_a_stage_that_raises_leaves_the_model_as_it_was(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        before, state = logits(unpatched(model, inputs)), traces(model)
        with pytest.raises(StageError, match=r"under-test.*stage-0.*on purpose"):
            run(model, policy_of(Breaks(), ratio=0.5), inputs)
        assert traces(model) == state
        assert torch.equal(before, logits(unpatched(model, inputs)))

    def test_nothing_of_ours_is_left_when_the_block_ends(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        unpatched(model, inputs)  # transformers installs hooks of its own at a model's first call
        state = traces(model)
        run(model, HALF, inputs)
        assert traces(model) == state

    def test_a_second_policy_on_the_same_model_is_refused(self, model: Any) -> None:
        with vidsieve.applied(model, HALF):
            with pytest.raises(UsageError, match="already applied"), vidsieve.applied(model, ALL):
                pass
            assert "generate" in vars(model)
        assert "generate" not in vars(model)

    def test_a_need_that_the_adapter_does_not_offer_is_refused_before_the_model_runs(self, model: Any) -> None:
        missing = sorted({*INPUTS, *SIGNALS} - adapter_for(model).offers)
        if not missing:
            pytest.skip("this family offers everything")

        class Needy(KeepAll):
            def needs(self) -> frozenset[str]:
                return frozenset({missing[0]})

        with (
            pytest.raises(PolicyError, match=f"stage-0.*needs {missing[0]}"),
            vidsieve.applied(model, policy_of(Needy(), ratio=1.0)),
        ):
            pass
