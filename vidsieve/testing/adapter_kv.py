"""Laws of KV pruning in decode, alone and behind stages that act before or inside the language model."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from jaxtyping import Bool
from torch import Tensor

import vidsieve
from vidsieve.framework.composition import Positions
from vidsieve.framework.errors import PlanError, PolicyError, StageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_compile import flash_attention
from vidsieve.testing.adapter_decoder_kit import (
    AFTER,
    Force,
    KeepLayer,
    Misbehaves,
    TopKV,
    TopLayer,
    masked,
    masked_decode,
    ranked,
    video_columns,
)
from vidsieve.testing.adapter_kit import (
    BATCHES,
    CHUNKS,
    HALF,
    HARDEST,
    STEPS,
    KeepRandom,
    ModelKit,
    Row,
    adapter_for,
    logits,
    needs_chunks,
    policy_of,
    run,
    traces,
    unpatched,
)
from vidsieve.testing.adapter_layer import points_of

KV = policy_of(TopKV())


class KVLaws(ModelKit):
    """Decode steps that read part of the visual cache; a family that keeps no whole cache must refuse instead."""

    @pytest.fixture(autouse=True)
    def _carried_out(self, model: Any, request: pytest.FixtureRequest) -> None:
        if hasattr(KVLaws, request.node.originalname) and "prune_kv" not in adapter_for(model).runs:
            with pytest.raises(PolicyError, match=r"stage-0.*prune_kv"), vidsieve.applied(model, KV):
                pass
            pytest.skip("this family does not carry prune_kv out, and says so")

    @pytest.mark.parametrize("rows", HARDEST.values(), ids=HARDEST)
    def test_everything_read_changes_no_bit(self, model: Any, rows: tuple[Row, ...]) -> None:
        inputs = self.make_inputs(model, *rows)
        output, report = run(model, policy_of(TopKV(ratio=1.0)), inputs)
        assert torch.equal(logits(output), logits(unpatched(model, inputs)))
        assert report.kv_ratio == 1.0

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_a_part_read_equals_masks_in_the_unpatched_model(self, model: Any, attention: str) -> None:
        model.set_attn_implementation(attention)
        inputs = self.make_inputs(model, Row(videos=2))
        output, report = run(model, KV, inputs)
        expected = masked_decode(model, inputs, TopKV().ratio)
        assert torch.allclose(logits(output)[0], expected, atol=1e-5)
        assert not torch.allclose(logits(output), logits(unpatched(model, inputs)), atol=1e-3)
        visual = report.kept_tokens
        layers = model.config.get_text_config().num_hidden_layers
        behind = (layers - 1 - AFTER) / layers
        assert report.kv_ratio == pytest.approx(1 - behind * (1 - int(0.4 * visual) / visual))

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_rows_of_a_batch_decode_as_alone(self, model: Any, attention: str) -> None:
        model.set_attn_implementation(attention)
        rows, policy = BATCHES["uneven batch"], policy_of(KeepRandom(), TopKV(), ratio=0.5)
        together, report = run(model, policy, self.make_inputs(model, *rows))
        assert report.not_run == ()
        for index, row in enumerate(rows):
            alone, _ = run(model, policy, self.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=self.tolerance)

    def test_idle_rows_read_everything_beside_rows_that_do_not(self, model: Any) -> None:
        rows = BATCHES["uneven batch"]
        together, _ = run(model, policy_of(Misbehaves()), self.make_inputs(model, *rows))
        idle = unpatched(model, self.make_inputs(model, rows[1]))
        assert torch.allclose(logits(together)[1], logits(idle)[0], atol=self.tolerance)
        one = masked_decode(model, self.make_inputs(model, rows[0]), only=0)
        assert torch.allclose(logits(together)[0], one, atol=self.tolerance)

    @pytest.mark.parametrize("rows", [BATCHES["two videos"], BATCHES["uneven batch"]], ids=["b1", "b2"])
    def test_beams_carry_their_own_state(self, model: Any, rows: tuple[Row, ...]) -> None:
        self.uses("beams")
        options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "output_scores": True}
        output, _ = run(model, KV, self.make_inputs(model, *rows), **options)
        for index, sequence in enumerate(output.sequences):
            inputs, new = self.make_inputs(model, rows[index // 2]), sequence[-STEPS:]
            forced, _ = run(model, KV, inputs, logits_processor=[Force(new, inputs["input_ids"].shape[1])])
            each = logits(forced)[0].log_softmax(-1).gather(1, new[:, None]).sum()
            assert torch.allclose(each, output.sequences_scores[index], atol=1e-4)

    @pytest.mark.parametrize("options", [CHUNKS, {"cache_implementation": "static"}])
    def test_other_caches_and_prefills_agree(self, model: Any, options: dict[str, Any]) -> None:
        self.uses_options(options)
        policy = policy_of(KeepRandom(), TopKV(), ratio=0.5)
        inputs = self.make_inputs(model, Row())
        plain, other = run(model, policy, inputs)[0], run(model, policy, inputs, **options)[0]
        assert torch.allclose(logits(plain), logits(other), atol=self.tolerance)

    @needs_chunks
    def test_a_prefill_chunk_of_one_token_is_no_decode_step(self, model: Any) -> None:
        self.uses("chunks")
        inputs = self.make_inputs(model, Row())
        chunk = inputs["input_ids"].shape[1] - 1
        plain, other = run(model, KV, inputs)[0], run(model, KV, inputs, prefill_chunk_size=chunk)[0]
        assert torch.allclose(logits(plain), logits(other), atol=self.tolerance)

    def test_nothing_is_remembered_from_one_call_to_the_next(self, model: Any) -> None:
        inputs, other = self.make_inputs(model, Row()), self.make_inputs(model, Row(seed=2, videos=2))
        with vidsieve.applied(model, KV):
            options = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True}
            first = model.generate(**inputs, **options)
            model.generate(**other, **options)
            again = model.generate(**inputs, **options)
        assert torch.equal(logits(first), logits(again))

    def test_two_stages_narrow_one_after_the_other(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        layers = model.config.get_text_config().num_hidden_layers
        _, report = run(model, policy_of(TopKV(after=0), TopKV(ratio=0.5, after=2)), inputs)
        visual = report.kept_tokens
        first, second = int(visual * 0.4), int(int(visual * 0.4) * 0.5)
        read = visual + 2 * first + (layers - 3) * second
        assert report.kv_ratio == pytest.approx(read / (layers * visual))

    def test_an_idle_stage_leaves_what_an_earlier_one_chose(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        alone, report = run(model, policy_of(TopKV(after=0)), inputs)
        both, other = run(model, policy_of(TopKV(after=0), Misbehaves(after=2)), inputs)
        assert torch.equal(logits(alone), logits(both))
        assert other.kv_ratio == report.kv_ratio

    def test_a_stage_sees_the_attention_to_its_own_visual_tokens_only(self, model: Any) -> None:
        seen: list[DecodeStep] = []

        class Looks(TopKV):
            @hookimpl
            def prune_kv(self, step: DecodeStep) -> KeepKV:
                seen.append(step)
                index = torch.zeros(len(step.counts), 1, dtype=torch.long)
                return KeepKV(index, torch.zeros(len(step.counts), dtype=torch.bool))

        _, report = run(model, policy_of(Looks()), self.make_inputs(model, *BATCHES["uneven batch"]))
        counts = [sum(report.baselines[:2]), report.baselines[2]]
        for step in seen:
            assert step.attention.dtype == torch.float32
            assert list(step.counts) == step.valid.sum(dim=1).tolist() == counts
            assert not step.attention.masked_select(~step.valid[:, None]).any()
            assert bool(((step.attention.sum(dim=-1) > 0) & (step.attention.sum(dim=-1) < 1)).all())
        assert len(seen) == STEPS - 1

    def test_the_second_turn_of_a_conversation_still_prunes(self, model: Any) -> None:
        self.uses("second turn")
        first, _ = run(model, HALF, self.make_inputs(model, Row()))
        turn = torch.cat([first.sequences, first.sequences[:, -3:]], dim=1)
        _, report = run(model, KV, {"input_ids": turn, "past_key_values": first.past_key_values})
        assert report.kv_ratio is not None
        assert report.kv_ratio < 1

    def test_a_prompt_without_video_is_left_alone(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(videos=0))
        output, report = run(model, KV, inputs)
        assert torch.equal(logits(output), logits(unpatched(model, inputs)))
        assert report.kv_ratio is None
        assert report.not_run == ("stage-0",)

    @pytest.mark.parametrize(("how", "error"), [("raise", StageError), ("too high", PlanError)])
    def test_a_failing_stage_leaves_the_model_as_it_was(self, model: Any, how: str, error: type[Exception]) -> None:
        inputs = self.make_inputs(model, Row())
        before, state = logits(unpatched(model, inputs)), traces(model)
        with pytest.raises(error, match=r"under-test.*stage-0.*prune_kv"):
            run(model, policy_of(Misbehaves(how=how)), inputs)
        assert traces(model) == state
        assert torch.equal(before, logits(unpatched(model, inputs)))

    def test_what_cannot_prune_is_refused(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        with pytest.raises(PolicyError, match=r"stage-0.*use_cache"):
            run(model, KV, inputs, use_cache=False)
        with pytest.raises(PolicyError, match=r"stage-0.*after layer 99"):
            run(model, policy_of(TopKV(after=99)), inputs)


CUTS = {
    "chosen where everything is held": (TopKV(ratio=0.5, after=0), TopLayer(keep_ratio=0.5, after=(1,))),
    "chosen where the cut begins": (TopLayer(keep_ratio=0.6, after=(0,)), TopKV(ratio=0.5, after=1)),
    "chosen at the layer that is cut behind": (TopLayer(keep_ratio=0.6, after=(1,)), TopKV(ratio=0.5, after=1)),
    "chosen between two cuts": (TopLayer(keep_ratio=0.7, after=(0, 2), of="next"), TopKV(ratio=0.6, after=1)),
}
BOTH = CUTS["chosen between two cuts"]


def unread_columns(
    model: Any,
    inputs: dict[str, Any],
    ids: Tensor,
    gone: Bool[Tensor, "layers prompt"],
    stage: TopKV,
    turns: Sequence[range],
    compact: bool,
) -> Bool[Tensor, "layers columns columns2"]:
    """What `stage` hides from each generated token, by eager weights; `turns` are the decode columns of each call."""
    _, output = masked(model, inputs, ids, gone, compact=compact, eager=True)
    weights, visual = output.attentions[stage.after][0].mean(dim=0), torch.cat(video_columns(model, inputs))
    alive = visual[~gone[stage.after, visual]]
    unread = torch.zeros(len(gone), ids.shape[1], ids.shape[1], dtype=torch.bool)
    for turn in turns:
        total = torch.zeros(len(alive))
        for query in turn:
            total += weights[query, alive]
            chosen = alive[total.argsort(descending=True)[: int(len(alive) * stage.ratio)]]
            hidden = visual[~torch.isin(visual, chosen)]
            unread[stage.after + 1 :, query, hidden] = True
    return unread


class BothLaws(ModelKit):
    """Tokens that leave the sequence in prefill, and entries that are not read in decode, in one policy."""

    every_layer_law: bool = True

    @pytest.fixture(autouse=True)
    def _both(self, request: pytest.FixtureRequest) -> None:
        if not hasattr(BothLaws, request.node.originalname):
            return
        if not {"prune_layer", "prune_kv"} <= adapter_for(request.getfixturevalue("model")).runs:
            pytest.skip("this family does not carry both out, and says so")
        few = "test_a_cut_and_a_selection_equal_masks[original-chosen between two cuts-sdpa]"
        if not self.every_layer_law and request.node.name != few:
            pytest.skip("few laws of pruning inside the decoder run on this family")

    def expected_of_both(
        self,
        model: Any,
        inputs: dict[str, Any],
        ids: Tensor,
        stages: Sequence[Stage],
        turns: Sequence[range],
        **how: Any,
    ) -> Tensor:
        """Logits of a full-length run with everything hidden that the stages cut or do not read."""
        compact = how.get("compact", False)
        (cut,) = (one for one in stages if isinstance(one, TopLayer))
        (choose,) = (one for one in stages if isinstance(one, TopKV))
        gone = ranked(
            model, inputs, points_of(cut, [len(one) for one in video_columns(model, inputs)]), compact=compact
        )
        unread = unread_columns(model, inputs, ids, gone, choose, turns, compact)
        return masked(model, inputs, ids, gone, compact=compact, unread=unread)[0]

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("stages", CUTS.values(), ids=CUTS)
    @pytest.mark.parametrize("positions", ["original", "compact"])
    def test_a_cut_and_a_selection_equal_masks(
        self, model: Any, attention: str, stages: Sequence[Stage], positions: Positions
    ) -> None:
        model.set_attn_implementation(attention)
        inputs = self.make_inputs(model, Row(videos=2))
        output, report = run(model, policy_of(*stages, positions=positions), inputs)
        ids, prompt = output.sequences[:, :-1], inputs["input_ids"].shape[1]
        turns = [range(prompt, ids.shape[1])]
        expected = self.expected_of_both(model, inputs, ids, stages, turns, compact=positions == "compact")
        assert torch.allclose(logits(output)[0], expected[-STEPS:], atol=1e-5)
        cut = [one for one in stages if isinstance(one, TopLayer)]
        without, _ = run(model, policy_of(*cut, positions=positions), inputs)
        assert not torch.allclose(logits(output), logits(without), atol=1e-3)
        assert report.not_run == ()

    def test_under_flash_attention_they_equal_masks_under_sdpa(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        with flash_attention(model):
            output, _ = run(model, policy_of(*BOTH), inputs)
        ids = output.sequences[:, :-1]
        expected = self.expected_of_both(model, inputs, ids, BOTH, [range(inputs["input_ids"].shape[1], ids.shape[1])])
        assert torch.allclose(logits(output)[0], expected[-STEPS:], atol=1e-5)

    @pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
    def test_rows_of_a_batch_are_cut_and_read_as_alone(self, model: Any, attention: str) -> None:
        rows, policy = BATCHES["uneven batch"], policy_of(KeepRandom(), TopLayer(after=(0, 2)), TopKV(), ratio=0.3)
        inputs = self.make_inputs(model, *rows)
        if attention == "flash":
            with flash_attention(model):
                together, _ = run(model, policy, inputs)
        else:
            model.set_attn_implementation(attention)
            together, _ = run(model, policy, inputs)
        for index, row in enumerate(rows):
            alone, _ = run(model, policy, self.make_inputs(model, row))
            assert torch.allclose(logits(together)[index], logits(alone)[0], atol=self.tolerance)

    def test_the_ratio_is_what_is_read_of_what_each_layer_holds(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        _, report = run(model, policy_of(TopLayer(keep_ratio=0.5, after=(0,)), TopKV(ratio=0.5, after=2)), inputs)
        visual, layers = report.baseline_tokens, model.config.get_text_config().num_hidden_layers
        held = visual // 2
        read = visual + 2 * held + (layers - 3) * (held // 2)
        assert report.kv_ratio == pytest.approx(read / (visual + (layers - 1) * held))
        assert report.layer_ratio == pytest.approx((visual + (layers - 1) * held) / (layers * visual))

    def test_nothing_cut_and_everything_read_changes_no_bit(self, model: Any) -> None:
        inputs = self.make_inputs(model, *BATCHES["uneven batch"])
        output, report = run(model, policy_of(KeepLayer(after=(0, 2)), TopKV(ratio=1.0), ratio=1.0), inputs)
        assert torch.equal(logits(output), logits(unpatched(model, inputs)))
        assert report.kv_ratio == report.layer_ratio == 1.0

    def test_beams_of_cut_prompts_carry_their_own_state(self, model: Any) -> None:
        rows = BATCHES["uneven batch"]
        options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "output_scores": True}
        output, _ = run(model, policy_of(*BOTH), self.make_inputs(model, *rows), **options)
        for index, sequence in enumerate(output.sequences):
            inputs, new = self.make_inputs(model, rows[index // 2]), sequence[-STEPS:]
            processor = [Force(new, inputs["input_ids"].shape[1])]
            forced, _ = run(model, policy_of(*BOTH), inputs, logits_processor=processor)
            each = logits(forced)[0].log_softmax(-1).gather(1, new[:, None]).sum()
            assert torch.allclose(each, output.sequences_scores[index], atol=1e-4)

    def test_a_second_turn_reads_from_caches_of_different_lengths(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        first, _ = run(model, policy_of(*BOTH), inputs)
        turn = torch.tensor([[self.words[i] for i in (7, 8, 9)]])
        whole = torch.cat([first.sequences, turn], dim=1)
        again, report = run(model, policy_of(*BOTH), {"input_ids": whole, "past_key_values": first.past_key_values})
        ids = again.sequences[:, :-1]
        prompt = inputs["input_ids"].shape[1]
        turns = [range(prompt, first.sequences.shape[1] - 1), range(whole.shape[1], ids.shape[1])]
        expected = self.expected_of_both(model, inputs, ids, BOTH, turns)
        assert torch.allclose(logits(again)[0], expected[-STEPS:], atol=self.tolerance)
        assert report.kv_ratio is not None
        assert report.kv_ratio < 1
