"""The laws of a model adapter, as tests to inherit.

class TestMyFamily(AdapterContract):
    def build_model(self): ...
    def make_video(self, seed): ...
    def make_image(self, seed): ...

See `PromptKit` for what else may be set. Everything runs on a tiny random model, on the CPU, in seconds.
"""

from typing import Any

import pytest
import torch

import vidsieve
from vidsieve.framework.errors import InputError, PolicyError, StageError, UsageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.policy import Policy
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.report import Report
from vidsieve.framework.stage import Stage
from vidsieve.framework.testing.adapter_kit import (
    Breaks,
    KeepAll,
    KeepRandom,
    PromptKit,
    Row,
    kept_columns,
    policy_of,
    rows_removed,
)

STEPS = 6
EMPTY = policy_of()
ALL = policy_of(KeepAll())
HALF = policy_of(KeepRandom(), ratio=0.5)
BATCHES = {
    "one prompt": (Row(),),
    "padded batch": (Row(words=4), Row(seed=1, words=9)),
    "two videos": (Row(videos=2),),
    "uneven batch": (Row(videos=2, words=4), Row(seed=1, words=9)),
}


def run(model: Any, policy: Policy | None, inputs: dict[str, Any], **options: Any) -> tuple[Any, Report | None]:
    """`generate` with or without a policy: its output, with logits, and the report."""
    options = {"max_new_tokens": STEPS, "do_sample": False} | options
    options |= {"return_dict_in_generate": True, "output_logits": True}
    if policy is None:
        return model.generate(**inputs, **options), None
    with vidsieve.applied(model, policy) as handle:
        output = model.generate(**inputs, **options)
    return output, handle.reports[-1]


def logits(output: Any) -> torch.Tensor:
    """Logits of all steps: (rows, steps, vocabulary)."""
    return torch.stack(output.logits, dim=1)


class AdapterContract(PromptKit):
    """Laws of compaction. Inherit and implement what `PromptKit` asks for."""

    tolerance: float = 2e-5

    @pytest.fixture
    def model(self) -> Any:
        """A fresh tiny model."""
        return self.build_model()

    def with_types(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs an unpatched model needs: M-RoPE ones are silently wrong without `mm_token_type_ids`."""
        if not hasattr(model.base_model, "get_rope_index"):
            return inputs
        ids = inputs["input_ids"]
        types = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
        return inputs | {"mm_token_type_ids": types}

    @pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
    @pytest.mark.parametrize("policy", [EMPTY, ALL], ids=["empty policy", "everything kept"])
    def test_nothing_removed_changes_no_bit(self, model: Any, rows: tuple[Row, ...], policy: Policy) -> None:
        inputs = self.with_types(model, self.make_inputs(model, *rows))
        before, _ = run(model, None, inputs)
        after, report = run(model, policy, inputs)
        assert torch.equal(logits(before), logits(after))
        assert torch.equal(before.sequences, after.sequences)
        assert report is not None
        assert report.attained_ratio == 1.0

    @pytest.mark.parametrize("videos", [1, 2])
    def test_half_removed_equals_the_language_model_with_rows_taken_out(self, model: Any, videos: int) -> None:
        inputs = self.make_inputs(model, Row(videos=videos))
        output, report = run(model, HALF, inputs)
        keep = kept_columns(model, inputs, report)
        assert report.attained_ratio == 0.5
        assert len(report.keeps) == videos
        assert torch.equal(logits(output)[0], rows_removed(model, inputs, keep, STEPS))
        assert not torch.allclose(logits(output), logits(run(model, EMPTY, inputs)[0]), atol=1e-3)

    def test_compact_positions_number_the_rows_that_stay(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        output, report = run(model, policy_of(KeepRandom(), ratio=0.5, positions="compact"), inputs)
        expected = rows_removed(model, inputs, kept_columns(model, inputs, report), STEPS, compact=True)
        assert torch.equal(logits(output)[0], expected)

    def test_a_padded_batch_equals_its_rows_alone(self, model: Any) -> None:
        rows = BATCHES["uneven batch"]
        together, report = run(model, HALF, self.make_inputs(model, *rows))
        seen = 0
        for index, row in enumerate(rows):
            alone, own = run(model, HALF, self.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=self.tolerance)
            for keep in own.keeps:
                assert torch.equal(keep, report.keeps[seen])
                seen += 1
        assert seen == len(report.keeps) == 3

    def test_the_same_seed_makes_the_same_plan_and_another_another(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        keeps = []
        for seed in (0, 0, 1):
            with vidsieve.applied(model, HALF, seed=seed) as handle:
                model.generate(**inputs, max_new_tokens=1)
            keeps.append(handle.reports[-1].keeps[0])
        assert torch.equal(keeps[0], keeps[1])
        assert not torch.equal(keeps[0], keeps[2])

    @pytest.mark.parametrize("options", [{"prefill_chunk_size": 7}, {"cache_implementation": "static"}])
    def test_other_ways_to_run_the_prompt_agree(self, model: Any, options: dict[str, Any]) -> None:
        inputs = self.make_inputs(model, Row())
        plain, other = run(model, HALF, inputs)[0], run(model, HALF, inputs, **options)[0]
        assert torch.allclose(logits(plain), logits(other), atol=self.tolerance)

    def test_decoding_without_a_cache_agrees(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(), Row(seed=1, words=8))
        plain, other = run(model, HALF, inputs)[0], run(model, HALF, inputs, use_cache=False)[0]
        assert torch.allclose(logits(plain), logits(other), atol=self.tolerance)

    def test_prompt_lookup_decoding_agrees(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        plain = run(model, HALF, inputs)[0].sequences
        assert torch.equal(plain, run(model, HALF, inputs, prompt_lookup_num_tokens=2)[0].sequences)

    def test_images_pass_untouched_beside_videos(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(images=1))
        assert torch.equal(
            logits(run(model, None, self.with_types(model, inputs))[0]), logits(run(model, ALL, inputs)[0])
        )
        output, report = run(model, HALF, inputs)
        keep = kept_columns(model, inputs, report)
        assert bool(keep[inputs["input_ids"][0] == model.config.image_token_id].all())
        assert torch.equal(logits(output)[0], rows_removed(model, inputs, keep, STEPS))

    @pytest.mark.parametrize("row", [Row(videos=0), Row(videos=0, images=1)], ids=["text", "image"])
    def test_prompts_without_video_pass_untouched(self, model: Any, row: Row) -> None:
        inputs = self.with_types(model, self.make_inputs(model, row))
        before, _ = run(model, None, inputs)
        after, report = run(model, HALF, inputs)
        assert torch.equal(logits(before), logits(after))
        assert report.baseline_tokens == 0

    def test_a_missing_mask_is_inferred_as_transformers_does(self, model: Any) -> None:
        inputs = self.make_inputs(model, *BATCHES["padded batch"])
        given = run(model, HALF, inputs)[0]
        inputs.pop("attention_mask")
        assert torch.equal(logits(given), logits(run(model, HALF, inputs)[0]))

    def test_features_computed_by_the_caller_are_used(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        expected = logits(run(model, HALF, inputs)[0])
        video = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        accepted = {name: video[name] for name in video if name != "second_per_grid_ts"}
        output = model.base_model.get_video_features(**accepted)
        rows = [part.clone() for part in output.pooler_output]
        inputs["mm_encoder_outputs"] = {"video": output}
        del inputs["pixel_values_videos"]
        assert torch.equal(expected, logits(run(model, HALF, inputs)[0]))
        assert all(torch.equal(a, b) for a, b in zip(rows, output.pooler_output, strict=True))

    def test_returned_ids_hold_the_original_prompt(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(), Row(seed=1, words=8))
        prompt = inputs["input_ids"]
        with vidsieve.applied(model, HALF):
            plain = model.generate(**inputs, max_new_tokens=3)
            drawn = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
        assert torch.equal(plain[:, : prompt.shape[1]], prompt)
        assert plain.shape[1] == prompt.shape[1] + 3
        assert torch.equal(drawn[:, : prompt.shape[1]], prompt.repeat_interleave(2, dim=0))

    @pytest.mark.parametrize("rows", [BATCHES["two videos"], BATCHES["uneven batch"]], ids=["b1", "b2"])
    def test_beams_are_those_of_each_row_alone(self, model: Any, rows: tuple[Row, ...]) -> None:
        options = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True}
        inputs = self.with_types(model, self.make_inputs(model, *rows))
        unpatched = run(model, None, inputs, **options)[0].sequences
        assert torch.equal(unpatched, run(model, ALL, inputs, **options)[0].sequences)
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

    def test_a_streamer_sees_the_original_prompt_once(self, model: Any) -> None:
        seen: list[torch.Tensor] = []

        class Streamer:
            ended = 0

            def put(self, value: torch.Tensor) -> None:
                seen.append(value)

            def end(self) -> None:
                self.ended += 1

        inputs, streamer = self.make_inputs(model, Row()), Streamer()
        with vidsieve.applied(model, HALF):
            output = model.generate(**inputs, max_new_tokens=3, streamer=streamer)
        assert torch.equal(seen[0], inputs["input_ids"])
        assert torch.equal(torch.cat([part.flatten() for part in seen]), output[0])
        assert streamer.ended == 1

    @pytest.mark.parametrize("new_ids_only", [False, True])
    def test_a_second_turn_goes_on_from_the_cache(self, model: Any, new_ids_only: bool) -> None:
        inputs = self.make_inputs(model, Row())
        first, _ = run(model, HALF, inputs)
        turn = torch.tensor([[self.words[i] for i in (7, 8, 9)]])
        whole = torch.cat([first.sequences, turn], dim=1)
        again = inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        fresh, _ = run(model, HALF, again)
        ids = whole[:, -4:] if new_ids_only else whole
        warm, report = run(model, HALF, again | {"input_ids": ids, "past_key_values": first.past_key_values})
        assert torch.allclose(logits(fresh), logits(warm), atol=self.tolerance)
        assert torch.equal(warm.sequences[:, :-STEPS], ids)
        assert report.baseline_tokens == 0

    def test_a_third_turn_with_a_new_video_goes_on_too(self, model: Any) -> None:
        output, _ = run(model, HALF, self.make_inputs(model, Row()))
        second = self.make_inputs(model, Row(seed=3, videos=0))["input_ids"]
        third = self.make_inputs(model, Row(seed=4))
        whole = torch.cat([output.sequences, second], dim=1)
        output, _ = run(model, HALF, {"input_ids": whole, "past_key_values": output.past_key_values})
        whole = torch.cat([output.sequences, third["input_ids"]], dim=1)
        new = third | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        warm, report = run(model, HALF, new | {"past_key_values": output.past_key_values})
        assert len(report.keeps) == 1
        assert report.attained_ratio == 0.5
        both = self.make_inputs(model, Row())
        keys = [key for key in third if key not in ("input_ids", "attention_mask")]
        full = new | {key: torch.cat([both[key], third[key]]) for key in keys}
        keep = kept_columns(model, full, Report.combine([self._first(model), report]))
        assert torch.allclose(logits(warm)[0], rows_removed(model, full, keep, STEPS), atol=self.tolerance)

    def _first(self, model: Any) -> Report:
        report = run(model, HALF, self.make_inputs(model, Row()))[1]
        assert report is not None
        return report

    def test_a_conversation_that_does_not_go_on_from_the_cache_is_refused(self, model: Any) -> None:
        first, _ = run(model, HALF, self.make_inputs(model, Row()))
        other = self.make_inputs(model, Row(seed=5, words=20))
        with pytest.raises(InputError, match="do not go on from"):
            run(model, HALF, other | {"past_key_values": first.past_key_values})

    def test_placeholders_that_do_not_fit_are_refused_before_anything_runs(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        short = {name: inputs[name][:, :-8] for name in ("input_ids", "attention_mask")}
        cut = inputs["input_ids"].ne(model.config.video_token_id).cumsum(1).eq(0).sum()
        fewer = {name: torch.cat([v[:, : cut + 8], v[:, cut + 9 :]], dim=1) for name, v in short.items()}
        model.base_model.get_video_features = lambda *a, **k: pytest.fail("the vision tower ran")
        with pytest.raises(InputError, match="placeholders"):
            run(model, HALF, inputs | fewer)
        with pytest.raises(InputError, match="no video came"):
            run(model, HALF, {name: inputs[name] for name in ("input_ids", "attention_mask")})
        del model.base_model.get_video_features

    def test_embeddings_instead_of_ids_are_refused_with_a_video(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        with pytest.raises(InputError, match="input_ids"):
            run(model, HALF, inputs | {"inputs_embeds": embeds})

    def test_a_stage_that_raises_leaves_the_model_as_it_was(self, model: Any) -> None:
        inputs = self.with_types(model, self.make_inputs(model, Row()))
        before, state = logits(run(model, None, inputs)[0]), traces(model)
        with pytest.raises(StageError, match=r"under-test.*stage-0.*on purpose"):
            run(model, policy_of(Breaks(), ratio=0.5), inputs)
        assert traces(model) == state
        assert torch.equal(before, logits(run(model, None, inputs)[0]))

    def test_nothing_of_ours_is_left_when_the_block_ends(self, model: Any) -> None:
        inputs = self.with_types(model, self.make_inputs(model, Row()))
        run(model, None, inputs)  # transformers installs hooks of its own at a model's first call
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
        class Needy(KeepAll):
            def needs(self) -> frozenset[str]:
                return frozenset({"vision_attention"})

        with (
            pytest.raises(PolicyError, match=r"stage-0.*vision_attention"),
            vidsieve.applied(model, policy_of(Needy())),
        ):
            pass

    def test_stages_see_the_question_and_the_grid(self, model: Any) -> None:
        seen: list[VideoTokens] = []

        class Looks(Stage):
            data_dependent = True

            def needs(self) -> frozenset[str]:
                return frozenset({"question", "token_grid"})

            @hookimpl
            def select_tokens(self, tokens: VideoTokens) -> Keep:
                seen.append(tokens)
                return Keep(tokens.keep)

        inputs = self.make_inputs(model, Row(words=6))
        run(model, policy_of(Looks()), inputs)
        words = [int(i) for i in inputs["input_ids"][0, -8:] if int(i) in self.words]
        expected = model.get_input_embeddings()(torch.tensor(words))
        assert torch.equal(seen[0].question, expected)
        t, h, w = seen[0].token_grid
        assert (t, h * w) == tuple(seen[0].keep.shape)

    def test_compressed_inputs_of_a_plain_forward_agree_with_generate(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(images=1), Row(seed=1, words=9))
        expected = logits(run(model, HALF, inputs)[0])[:, 0]
        short, report = vidsieve.compress(model, inputs, HALF)
        assert report.attained_ratio == 0.5
        assert short["input_ids"].shape[1] < inputs["input_ids"].shape[1]
        with torch.no_grad():
            assert torch.allclose(model(**short).logits[:, -1], expected, atol=self.tolerance)
            uncached = model(**short, use_cache=False).logits[:, -1]
        assert torch.allclose(uncached, expected, atol=self.tolerance)

    def test_a_bf16_model_runs(self, model: Any) -> None:
        output, report = run(model.to(torch.bfloat16), HALF, self.make_inputs(model, Row(), Row(seed=1, words=8)))
        assert torch.isfinite(logits(output)).all()
        assert report.attained_ratio == 0.5


def traces(model: Any) -> list[Any]:
    """What a library could leave behind: instance attributes, hooks and attention settings of every module."""
    found: list[Any] = []
    for name, module in model.named_modules():
        own = {
            key: id(value) for key, value in vars(module).items() if not key.startswith("_") and key != "rope_deltas"
        }
        hooks = (len(module._forward_pre_hooks), len(module._forward_hooks))
        config = getattr(module, "config", None)
        found.append((name, own, hooks, getattr(config, "_attn_implementation", None)))
    return found
