"""The thinker of Qwen2.5-Omni obeys the laws of an adapter; audio passes untouched, beside a video and inside it."""

from typing import Any

import pytest
import torch
from adapters.tiny import IMAGE, ROPE_3D, TEXT, VIDEO, VISION_END, VISION_START, patches
from torch import Tensor
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep
from vidsieve.framework.records import VideoTokens
from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import (
    ALL,
    HALF,
    STEPS,
    KeepAll,
    Row,
    kept_columns,
    logits,
    policy_of,
    rows_removed,
    run,
    unpatched,
)

AUDIO, AUDIO_START, AUDIO_END = 94, 95, 96
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
SOUND = {
    "num_mel_bins": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "output_dim": 64,
    "max_source_positions": 100,
}


class TestQwen25Omni(AdapterContract):
    every_layer_law = False
    bit_equal = False  # its head runs on all rows of a prompt, so their number moves the last bit
    around_video = around_image = ((VISION_START,), (VISION_END,))

    def build_model(self) -> Qwen2_5OmniThinkerForConditionalGeneration:
        torch.manual_seed(0)
        config = Qwen2_5OmniThinkerConfig(
            text_config=TEXT | ROPE_3D,
            vision_config=VISION,
            audio_config=SOUND,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            audio_token_index=AUDIO,
            audio_start_token_id=AUDIO_START,
            audio_end_token_id=AUDIO_END,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
        )
        return Qwen2_5OmniThinkerForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[frames, 8, 6 + 2 * (seed % 2)]])
        pace = torch.tensor([0.5 + 0.5 * (seed % 3)])
        return {"pixel_values_videos": patches(grid, seed), "video_grid_thw": grid, "video_second_per_grid": pace}

    def pooled(self, model: Any, inputs: dict[str, Any], values: list[Tensor]) -> Tensor:
        """The tower sorts tokens by window; transformers says how."""
        tokens = super().pooled(model, inputs, values)
        order, _ = get_vision_window_index(inputs["video_grid_thw"], 2, 16, 4)
        return torch.zeros_like(tokens).index_copy(0, order, tokens)

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        return {"pixel_values": patches(grid, seed), "image_grid_thw": grid}

    def with_sound(self, model: Any, inside: bool) -> dict[str, Any]:
        """A prompt with a clip of sound, beside its video or belonging to it."""
        video = self.make_video(0)
        run_of = [VIDEO] * self.runs(model, video)[0]
        sound = [AUDIO] * 5
        if inside:
            middle = [VISION_START, AUDIO_START, *run_of, *sound, AUDIO_END, VISION_END]
        else:
            middle = [AUDIO_START, *sound, AUDIO_END, 30, VISION_START, *run_of, VISION_END]
        ids = torch.tensor([[4, 5, *middle, 6, 7, 8]])
        mel = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(5))
        heard = {"input_features": mel, "feature_attention_mask": torch.ones(1, 20, dtype=torch.long)}
        if inside:
            heard |= {"use_audio_in_video": True}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **video, **heard}

    @pytest.mark.parametrize("inside", [False, True], ids=["beside the video", "inside the video"])
    def test_sound_passes_untouched(self, model: Any, inside: bool) -> None:
        inputs = self.with_sound(model, inside)
        assert torch.equal(logits(unpatched(model, inputs)), logits(run(model, ALL, inputs)[0]))
        output, report = run(model, HALF, inputs)
        keep = kept_columns(model, inputs, report)
        assert bool(keep[inputs["input_ids"][0] == AUDIO].all())
        assert report.attained_ratio == 0.5
        assert torch.allclose(logits(output)[0], rows_removed(model, inputs, keep, STEPS), atol=1e-5)

    def test_stages_see_the_seconds_of_each_temporal_patch(self, model: Any) -> None:
        seen = []

        class Times(KeepAll):
            def needs(self) -> frozenset[str]:
                return frozenset({"timestamps_s"})

            @hookimpl
            def select_tokens(self, tokens: VideoTokens) -> Keep:
                seen.append(tokens.timestamps_s)
                return Keep(tokens.keep)

        run(model, policy_of(Times(), ratio=1.0), self.make_inputs(model, Row(seed=1)))
        assert seen[0].tolist() == [0.0, 1.0, 2.0, 3.0]
