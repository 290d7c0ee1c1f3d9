"""Laws of pruning inside the decoder, against full-length masked runs of the unmodified model and each row alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import vidsieve
from vidsieve.framework.composition import Positions
from vidsieve.framework.errors import PolicyError, StageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import LayerTokens
from vidsieve.testing.adapter_compile import flash_attention
from vidsieve.testing.adapter_decoder_kit import (
    BreaksInside,
    KeepLayer,
    Point,
    TopLayer,
    masked,
    ranked,
    video_columns,
)
from vidsieve.testing.adapter_kit import (
    BATCHES,
    HALF,
    STEPS,
    KeepRandom,
    ModelKit,
    Row,
    adapter_for,
    kept_columns,
    logits,
    places_of,
    policy_of,
    run,
    traces,
    unpatched,
)

ONE = TopLayer(keep_ratio=0.4, after=(0,))
TWO = TopLayer(keep_ratio=0.6, after=(0, 2), of="next")

FEW = frozenset(
    {
        "test_dropping_equals_masks_in_the_unmodified_model[original-two points-sdpa]",
        "test_dropping_equals_masks_in_the_unmodified_model[compact-two points-sdpa]",
        "test_rows_of_a_batch_are_pruned_as_alone[sdpa]",
        "test_a_stage_that_raises_inside_leaves_the_model_as_it_was",
    }
)
"""Laws that depend on what a family gives its decoder."""


@contextmanager
def entering(model: Any) -> Iterator[list[torch.Tensor]]:
    """While open, what comes into each decoder layer in turn."""
    seen: list[torch.Tensor] = []

    def look(module: Any, args: Any) -> None:
        seen.append(args[0])

    handles = [layer.register_forward_pre_hook(look) for layer in model.get_decoder().layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def points_of(stage: TopLayer, sizes: list[int]) -> list[Point]:
    """What a stage should do to videos of these sizes."""
    each = [stage.leaves(size, 4) for size in sizes]
    return [Point(after, stage.of, tuple(one[turn] for one in each)) for turn, after in enumerate(stage.after)]


class LayerLaws(ModelKit):
    """Visual tokens that leave the sequence between decoder layers; a family that cannot do it must refuse instead.

    `every_layer_law` is False where a few laws are enough: the rest say nothing about the family, only about decoders.
    """

    every_layer_law: bool = True

    @pytest.fixture(autouse=True)
    def _cut_inside(self, request: pytest.FixtureRequest) -> None:
        if not hasattr(LayerLaws, request.node.originalname):
            return
        if not self.every_layer_law and request.node.name not in FEW:
            pytest.skip("few laws of pruning inside the decoder run on this family")
        model = request.getfixturevalue("model")
        if "prune_layer" not in adapter_for(model).runs:
            with pytest.raises(PolicyError, match=r"stage-0.*prune_layer"), vidsieve.applied(model, policy_of(ONE)):
                pass
            pytest.skip("this family does not carry prune_layer out, and says so")

    def expected(
        self, model: Any, inputs: dict[str, Any], output: Any, stage: TopLayer, compact: bool = False
    ) -> torch.Tensor:
        """Logits of the same text when the unmodified model masks what the stage should drop."""
        sizes = [len(columns) for columns in video_columns(model, inputs)]
        gone = ranked(model, inputs, points_of(stage, sizes), compact=compact)
        found, _ = masked(model, inputs, output.sequences[:, :-1], gone, compact=compact)
        return found[-STEPS:]

    @pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
    def test_nothing_dropped_inside_changes_no_bit(self, model: Any, rows: tuple[Row, ...]) -> None:
        inputs = self.make_inputs(model, *rows)
        for of in ("previous", "next"):
            output, report = run(model, policy_of(KeepLayer(after=(0, 2), of=of), ratio=1.0), inputs)
            assert torch.equal(logits(output), logits(unpatched(model, inputs)))
            assert report.attained_ratio == report.layer_ratio == 1.0

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("stage", [ONE, TWO], ids=["one point", "two points"])
    @pytest.mark.parametrize("positions", ["original", "compact"])
    def test_dropping_equals_masks_in_the_unmodified_model(
        self, model: Any, attention: str, stage: TopLayer, positions: Positions
    ) -> None:
        model.set_attn_implementation(attention)
        inputs = self.make_inputs(model, Row(videos=2))
        output, _ = run(model, policy_of(stage, positions=positions), inputs)
        expected = self.expected(model, inputs, output, stage, positions == "compact")
        assert torch.allclose(logits(output)[0], expected, atol=1e-5)
        assert not torch.allclose(logits(output), logits(unpatched(model, inputs)), atol=1e-3)

    @pytest.mark.parametrize("stage", [ONE, TWO], ids=["one point", "two points"])
    def test_dropping_under_flash_attention_equals_masks_under_sdpa(self, model: Any, stage: TopLayer) -> None:
        inputs = self.make_inputs(model, Row())
        with flash_attention(model):
            output, _ = run(model, policy_of(stage), inputs)
        assert torch.allclose(logits(output)[0], self.expected(model, inputs, output, stage), atol=1e-5)

    @pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
    def test_rows_of_a_batch_are_pruned_as_alone(self, model: Any, attention: str) -> None:
        rows, policy = BATCHES["uneven batch"], policy_of(KeepRandom(), TopLayer(after=(0, 2), of="next"), ratio=0.3)
        inputs = self.make_inputs(model, *rows)
        if attention == "flash":
            with flash_attention(model):
                together, report = run(model, policy, inputs)
        else:
            model.set_attn_implementation(attention)
            together, report = run(model, policy, inputs)
        assert report.not_run == ()
        seen = 0
        for index, row in enumerate(rows):
            alone, own = run(model, policy, self.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=self.tolerance)
            assert report.layer_tokens[seen : seen + row.videos] == own.layer_tokens
            seen += row.videos

    def test_rows_without_video_stand_beside_rows_with_one(self, model: Any) -> None:
        rows = (Row(), Row(seed=1, videos=0, words=20))
        together, _ = run(model, policy_of(ONE), self.make_inputs(model, *rows))
        for index, row in enumerate(rows):
            alone, _ = run(model, policy_of(ONE), self.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=self.tolerance)

    def test_tokens_dropped_before_and_inside_the_decoder_are_gone_together(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        output, report = run(model, policy_of(KeepRandom(), ONE, ratio=0.5, exact=False), inputs)
        keep = kept_columns(model, inputs, report)
        depth = model.config.get_text_config().num_hidden_layers
        gone, alive = (~keep).expand(depth, -1), int(report.keeps[0].sum())
        gone = ranked(model, inputs, points_of(ONE, [alive]), gone=gone)
        expected, _ = masked(model, inputs, output.sequences[:, :-1], gone)
        assert torch.allclose(logits(output)[0], expected[-STEPS:], atol=1e-5)

    def test_the_ratio_is_the_mean_over_layers(self, model: Any) -> None:
        inputs, depth = self.make_inputs(model, Row(videos=2)), model.config.get_text_config().num_hidden_layers
        for stage in (TopLayer(after=(0,)), TopLayer(after=(0, 2))):
            report = run(model, policy_of(stage, ratio=0.5), inputs)[1]
            tokens = report.baseline_tokens
            assert report.prompt_ratio == 1.0
            assert report.attained_ratio == pytest.approx(sum(map(sum, report.layer_tokens)) / (depth * tokens))
            assert 0.5 - len(report.keeps) / tokens < report.attained_ratio <= 0.5

    def test_a_single_prompt_needs_no_mask(self, model: Any) -> None:
        seen: list[Any] = []

        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs.get("attention_mask"))

        for layer in model.get_decoder().layers:
            layer.self_attn.register_forward_pre_hook(look, with_kwargs=True)
        run(model, policy_of(TopLayer(keep_ratio=0.5)), self.make_inputs(model, Row()))
        assert seen
        assert all(mask is None for mask in seen)

    @pytest.mark.parametrize("rows", [BATCHES["two videos"], BATCHES["uneven batch"]], ids=["b1", "b2"])
    def test_beams_of_pruned_prompts_are_those_of_each_row_alone(self, model: Any, rows: tuple[Row, ...]) -> None:
        options = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True}
        together = run(model, policy_of(TWO), self.make_inputs(model, *rows), **options)[0]
        for index, row in enumerate(rows):
            alone = run(model, policy_of(TWO), self.make_inputs(model, row), **options)[0]
            found = slice(3 * index, 3 * index + 3)
            assert torch.equal(together.sequences[found, -STEPS:], alone.sequences[:, -STEPS:])
            assert torch.allclose(together.sequences_scores[found], alone.sequences_scores, atol=1e-4)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("positions", ["original", "compact"])
    @pytest.mark.parametrize("later", [TWO, None], ids=["the same policy", "another policy"])
    def test_a_second_turn_goes_on_from_caches_of_different_lengths(
        self, model: Any, attention: str, positions: Positions, later: TopLayer | None
    ) -> None:
        model.set_attn_implementation(attention)
        inputs, policy = self.make_inputs(model, Row()), policy_of(TWO, positions=positions)
        first, _ = run(model, policy, inputs)
        turn = torch.tensor([[self.words[i] for i in (7, 8, 9)]])
        whole = torch.cat([first.sequences, turn], dim=1)
        second = HALF if later is None else policy
        again, report = run(model, second, {"input_ids": whole, "past_key_values": first.past_key_values})
        gone = ranked(
            model, inputs, points_of(TWO, [len(video_columns(model, inputs)[0])]), compact=positions != "original"
        )
        found, _ = masked(model, inputs, again.sequences[:, :-1], gone, compact=positions != "original")
        assert torch.allclose(logits(again)[0], found[-STEPS:], atol=self.tolerance)
        assert report.layer_tokens == ()

    def test_a_new_video_in_the_second_turn_is_pruned_too(self, model: Any) -> None:
        inputs, other = self.make_inputs(model, Row()), self.make_inputs(model, Row(seed=2))
        first, _ = run(model, policy_of(TWO), inputs)
        whole = torch.cat([first.sequences, other["input_ids"]], dim=1)
        new = other | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        output, report = run(model, policy_of(TWO), new | {"past_key_values": first.past_key_values})
        pixels = [key for key in other if key not in ("input_ids", "attention_mask")]
        full = new | {key: torch.cat([inputs[key], other[key]]) for key in pixels}
        old, fresh = video_columns(model, full)
        before = ranked(model, inputs, points_of(TWO, [len(old)]))
        gone = torch.zeros(len(before), whole.shape[1], dtype=torch.bool)
        gone[:, : before.shape[1]] = before
        gone = ranked(model, full, points_of(TWO, [len(fresh)]), gone=gone, videos=[fresh])
        expected, _ = masked(model, full, output.sequences[:, :-1], gone)
        assert torch.allclose(logits(output)[0], expected[-STEPS:], atol=self.tolerance)
        assert len(report.layer_tokens) == 1

    def test_stages_see_what_the_model_computes(self, model: Any) -> None:
        seen: list[LayerTokens] = []
        rows: list[torch.Tensor] = []

        class Looks(TopLayer):
            @hookimpl
            def prune_layer(self, tokens: LayerTokens) -> Scores:
                seen.append(tokens)
                words = torch.arange(len(tokens.text))
                rows.append(tokens.attention(words, of="previous"))
                rows.append(tokens.attention(words, of="next"))
                return Scores(tokens.attention("last").mean(dim=(0, 1)))

        inputs = self.make_inputs(model, Row())
        run(model, policy_of(Looks(keep_ratio=1.0)), inputs)
        (columns,), (tokens,) = video_columns(model, inputs), seen
        model.set_attn_implementation("eager")
        with entering(model) as states:
            weights = unpatched(model, inputs, max_new_tokens=1, output_attentions=True).attentions[0]
        text = ~places_of(model, inputs["input_ids"])[0]
        words = [i for i in range(int(columns[-1]) + 1, len(text)) if text[i]]
        pairs = [
            (tokens.hidden, states[2][0, columns]),
            (tokens.hidden_before, states[1][0, columns]),
            (tokens.text, states[2][0, words]),
            (tokens.visual_inputs, states[0][0, columns]),
            (tokens.text_inputs, states[0][0, words]),
        ]
        pairs += [(found, weights[i][0][:, words][..., columns]) for i, found in zip((1, 2), rows, strict=True)]
        for found, computed in pairs:
            assert torch.allclose(found, computed, atol=1e-5)
        assert tokens.frame.tolist() == sorted(tokens.frame.tolist())

    def test_a_prompt_without_video_is_not_pruned(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(videos=0))
        output, report = run(model, policy_of(ONE), inputs)
        assert torch.equal(logits(output), logits(unpatched(model, inputs)))
        assert report.not_run == ("stage-0",)

    def test_a_stage_that_raises_inside_leaves_the_model_as_it_was(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        before, state = logits(unpatched(model, inputs)), traces(model)
        with pytest.raises(StageError, match=r"under-test.*stage-0.*prune_layer.*on purpose"):
            run(model, policy_of(BreaksInside(), ratio=0.5), inputs)
        assert traces(model) == state
        run(model, policy_of(ONE), inputs)
        assert traces(model) == state
        assert torch.equal(before, logits(unpatched(model, inputs)))

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"use_cache": False}, "use_cache"),
            ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
            ({"cache_implementation": "static"}, "cache_implementation 'static'"),
            ({"prefill_chunk_size": 7}, "prefill_chunk_size"),
        ],
    )
    def test_what_caches_of_different_lengths_cannot_do_is_refused(
        self, model: Any, options: dict[str, Any], word: str
    ) -> None:
        inputs = self.make_inputs(model, Row())
        with pytest.raises(PolicyError, match=f"stage-0.*{word}"):
            run(model, policy_of(ONE), inputs, **options)

    def test_a_layer_that_is_not_there_is_refused(self, model: Any) -> None:
        with (
            pytest.raises(PolicyError, match=r"stage-0.*no layer comes after"),
            vidsieve.applied(model, policy_of(TopLayer(keep_ratio=0.5, after=(3,)))),
        ):
            model.generate(**self.make_inputs(model, Row()))
