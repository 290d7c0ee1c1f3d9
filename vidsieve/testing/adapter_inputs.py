"""Laws of hard inputs: one frame, odd counts, videos of different lengths side by side, no question."""

from typing import Any

import pytest
import torch

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.testing.adapter_kit import KeepAll, Row, kept_columns, policy_of, rows_removed
from vidsieve.testing.adapter_runs import HALF, STEPS, ModelKit, logits, run


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
