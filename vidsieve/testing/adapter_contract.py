"""The laws of a model adapter, as tests to inherit.

class TestMyFamily(AdapterContract):
    def build_model(self): ...
    def make_video(self, seed, frames=4): ...
    def make_image(self, seed): ...

See `PromptKit` for what else may be set. Everything runs on a tiny random model, on the CPU, in seconds.
"""

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import vidsieve
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, tokens_to_keep
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_calls import CallLaws
from vidsieve.testing.adapter_compile import CompileLaws, flash_attention
from vidsieve.testing.adapter_frames import FrameLaws
from vidsieve.testing.adapter_kit import (
    ALL,
    BATCHES,
    CHUNKS,
    EMPTY,
    HALF,
    HARDEST,
    STEPS,
    KeepAll,
    KeepRandom,
    ModelKit,
    Row,
    adapter_for,
    kept_columns,
    logits,
    policy_of,
    rows_removed,
    run,
    unpatched,
    visual_places,
)
from vidsieve.testing.adapter_kv import BothLaws, KVLaws
from vidsieve.testing.adapter_layer import LayerLaws
from vidsieve.testing.adapter_reuse import EncodedLaws, PrefixLaws
from vidsieve.testing.adapter_signals import SignalLaws


class CompactionLaws(ModelKit):
    """Removing visual tokens before the language model."""

    @pytest.mark.parametrize("rows", HARDEST.values(), ids=HARDEST)
    @pytest.mark.parametrize("policy", [EMPTY, ALL], ids=["empty policy", "everything kept"])
    def test_nothing_removed_changes_no_bit(self, model: Any, rows: tuple[Row, ...], policy: Policy) -> None:
        inputs = self.make_inputs(model, *rows)
        before = unpatched(model, inputs)
        after, report = run(model, policy, inputs)
        assert torch.equal(logits(before), logits(after))
        assert torch.equal(before.sequences, after.sequences)
        assert report.attained_ratio == 1.0

    @pytest.mark.parametrize("videos", [1, 2])
    def test_half_removed_equals_the_language_model_with_rows_taken_out(self, model: Any, videos: int) -> None:
        inputs = self.make_inputs(model, Row(videos=videos))
        output, report = run(model, HALF, inputs)
        keep = kept_columns(model, inputs, report)
        assert report.attained_ratio == 0.5
        assert len(report.keeps) == videos
        assert self.same(logits(output)[0], rows_removed(model, inputs, keep, STEPS))
        assert not torch.allclose(logits(output), logits(run(model, EMPTY, inputs)[0]), atol=1e-3)

    def test_compact_positions_number_the_rows_that_stay(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        output, report = run(model, policy_of(KeepRandom(), ratio=0.5, positions="compact"), inputs)
        expected = rows_removed(model, inputs, kept_columns(model, inputs, report), STEPS, compact=True)
        assert self.same(logits(output)[0], expected)

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

    def test_the_videos_of_a_prompt_draw_different_numbers_and_prompts_the_same(self, model: Any) -> None:
        seen: list[float] = []

        class Draws(Stage):
            @hookimpl
            def select_tokens(self, tokens: VideoTokens) -> Keep:
                seen.append(float(torch.rand((), generator=tokens.rng)))
                return Keep(tokens.keep)

        run(model, policy_of(Draws(), ratio=1.0), self.make_inputs(model, Row(videos=2), Row(seed=1, words=9)))
        assert seen[0] == seen[2] != seen[1]

    @pytest.mark.parametrize("options", [CHUNKS, {"cache_implementation": "static"}])
    def test_other_ways_to_run_the_prompt_agree(self, model: Any, options: dict[str, Any]) -> None:
        self.uses_options(options)
        inputs = self.make_inputs(model, Row())
        plain, other = run(model, HALF, inputs)[0], run(model, HALF, inputs, **options)[0]
        assert torch.allclose(logits(plain), logits(other), atol=self.tolerance)

    def test_decoding_without_a_cache_agrees(self, model: Any) -> None:
        self.uses("no cache")
        inputs = self.make_inputs(model, Row(), Row(seed=1, words=8))
        plain, other = run(model, HALF, inputs)[0], run(model, HALF, inputs, use_cache=False)[0]
        assert torch.allclose(logits(plain), logits(other), atol=self.tolerance)

    @pytest.mark.parametrize("how", ["flash", "no cache"])
    def test_gaps_never_reach_what_reads_them_as_packed_sequences(self, model: Any, how: str) -> None:
        self.uses("flat positions", how)
        seen: list[torch.Tensor] = []

        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if kwargs.get("position_ids") is not None:
                seen.append(kwargs["position_ids"])

        model.get_decoder().layers[0].register_forward_pre_hook(look, with_kwargs=True)
        inputs = self.make_inputs(model, Row())
        expected = logits(run(model, HALF, inputs)[0])
        seen.clear()
        with flash_attention(model) if how == "flash" else nullcontext():
            output, report = run(model, HALF, inputs, use_cache=how == "flash")
        assert torch.allclose(logits(output), expected, atol=self.tolerance)
        assert seen[0].shape[-1] == inputs["input_ids"].shape[1] - report.baseline_tokens // 2
        assert all(bool((ids.diff(dim=-1) == 1).all()) for ids in seen)

    def test_prompt_lookup_decoding_agrees(self, model: Any) -> None:
        self.uses("lookup")
        inputs = self.make_inputs(model, Row())
        plain = run(model, HALF, inputs)[0].sequences
        assert torch.equal(plain, run(model, HALF, inputs, prompt_lookup_num_tokens=2)[0].sequences)

    def test_images_pass_untouched_beside_videos(self, model: Any) -> None:
        self.uses("images")
        inputs = self.make_inputs(model, Row(images=1))
        assert torch.equal(logits(unpatched(model, inputs)), logits(run(model, ALL, inputs)[0]))
        output, report = run(model, HALF, inputs)
        keep = kept_columns(model, inputs, report)
        images = (inputs["input_ids"][0] == model.config.image_token_id) & ~visual_places(model, inputs)
        assert images.any()
        assert bool(keep[images].all())
        assert self.same(logits(output)[0], rows_removed(model, inputs, keep, STEPS))

    @pytest.mark.parametrize("row", [Row(videos=0), Row(videos=0, images=1)], ids=["text", "image"])
    def test_prompts_without_video_pass_untouched(self, model: Any, row: Row) -> None:
        inputs = self.make_inputs(model, row)
        before = unpatched(model, inputs)
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
        modality = adapter_for(model).modality
        encoder = getattr(model.base_model, f"get_{modality}_features")
        accepted = {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}
        output = encoder(**accepted)
        rows = [part.clone() for part in output.pooler_output]
        inputs["mm_encoder_outputs"] = {modality: output}
        del inputs["pixel_values_videos" if modality == "video" else "pixel_values"]
        assert torch.equal(expected, logits(run(model, HALF, inputs)[0]))
        assert all(torch.equal(a, b) for a, b in zip(rows, output.pooler_output, strict=True))

    def test_stages_see_the_question_and_the_grid(self, model: Any) -> None:
        seen: list[VideoTokens] = []

        class Looks(Stage):
            def needs(self) -> frozenset[str]:
                return frozenset({"question", "token_grid"})

            @hookimpl
            def select_tokens(self, tokens: VideoTokens) -> Keep:
                seen.append(tokens)
                return Keep(tokens.keep)

        inputs = self.make_inputs(model, Row(words=6))
        run(model, policy_of(Looks(), ratio=1.0), inputs)
        last = int(visual_places(model, inputs).nonzero().max())
        words = [int(i) for i in inputs["input_ids"][0, last + 1 :] if int(i) in self.words]
        expected = model.get_input_embeddings()(torch.tensor(words))
        question, grid = seen[0].question, seen[0].token_grid
        assert question is not None
        assert torch.equal(question, expected)
        assert grid is not None
        assert (grid[0], grid[1] * grid[2]) == tuple(seen[0].keep.shape)

    def test_compressed_inputs_of_a_plain_forward_agree_with_generate(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(images=int("images" not in self.cannot)), Row(seed=1, words=9))
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


class InputLaws(ModelKit):
    """Prompts at the edges of what callers send."""

    fewest_frames: int = 1

    @pytest.mark.parametrize("frames", ["fewest", 5])
    def test_any_number_of_frames_will_do(self, model: Any, frames: Any) -> None:
        inputs = self.make_inputs(model, Row(frames=(self.fewest_frames if frames == "fewest" else frames,)))
        output, report = run(model, HALF, inputs)
        assert report.kept_tokens == tokens_to_keep(report.baseline_tokens, 0.5)
        expected = rows_removed(model, inputs, kept_columns(model, inputs, report), STEPS)
        assert torch.allclose(logits(output)[0], expected, atol=self.tolerance)

    def test_videos_of_different_lengths_share_a_padded_batch(self, model: Any) -> None:
        self.uses("uneven videos")
        rows = (Row(videos=2, words=4, frames=(3, 6)), Row(seed=1, words=9, frames=(5,)))
        together, report = run(model, HALF, self.make_inputs(model, *rows))
        assert [len(keep) for keep in report.keeps] == [3, 6, 5]
        for index, row in enumerate(rows):
            alone, _ = run(model, HALF, self.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=self.tolerance)

    def test_images_text_and_videos_of_any_length_share_a_padded_batch(self, model: Any) -> None:
        self.uses("images", "uneven videos")
        rows = (
            Row(images=1, videos=2, words=0, frames=(2, 7)),
            Row(seed=1, videos=0, words=30),
            Row(seed=2, frames=(5,)),
        )
        together, report = run(model, HALF, self.make_inputs(model, *rows))
        assert [len(keep) for keep in report.keeps] == [2, 7, 5]
        for index, row in enumerate(rows):
            alone, _ = run(model, HALF, self.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=self.tolerance)

    def test_a_prompt_may_end_with_its_video(self, model: Any) -> None:
        class Asks(KeepAll):
            def needs(self) -> frozenset[str]:
                return frozenset({"question"})

        inputs = self.make_inputs(model, Row(words=0))
        output, report = run(model, HALF, inputs)
        expected = rows_removed(model, inputs, kept_columns(model, inputs, report), STEPS)
        assert torch.allclose(logits(output)[0], expected, atol=self.tolerance)
        if self.ends_without_words:
            with pytest.raises(PolicyError, match=r"stage-0.*needs question"):
                run(model, policy_of(Asks(), ratio=1.0), inputs)

    ends_without_words: bool = True
    """Whether nothing but special tokens follows the last frame of a video."""


class AdapterContract(
    CompactionLaws,
    CallLaws,
    InputLaws,
    PrefixLaws,
    FrameLaws,
    SignalLaws,
    EncodedLaws,
    LayerLaws,
    KVLaws,
    BothLaws,
    CompileLaws,
):
    """All laws of an adapter."""
