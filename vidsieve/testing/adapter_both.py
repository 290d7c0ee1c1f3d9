"""Laws of layer stages and KV stages in one policy, against full-length masked runs and each row alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from jaxtyping import Bool
from torch import Tensor

from vidsieve.framework.policy.composition import Positions
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_flash import flash_attention
from vidsieve.testing.adapter_kit import KeepRandom, Row, adapter_of, policy_of
from vidsieve.testing.adapter_kv_kit import Force, TopKV
from vidsieve.testing.adapter_layer import points_of
from vidsieve.testing.adapter_layer_kit import KeepLayer, TopLayer, masked, ranked, video_columns
from vidsieve.testing.adapter_runs import BATCHES, STEPS, ModelKit, logits, run, unpatched

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
        if not {"prune_layer", "prune_kv"} <= adapter_of(request.getfixturevalue("model")).runs:
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
