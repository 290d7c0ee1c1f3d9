"""Qwen2-VL obeys the laws of an adapter."""

from typing import Any

import torch
from adapters.tiny import IDS, ROPE_3D, TEXT, VISION_END, VISION_START, patches
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from vidsieve.framework.testing import AdapterContract
from vidsieve.framework.testing.adapter_kit import Row
from vidsieve.framework.testing.adapter_runs import HALF, STEPS, run

VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}


class TestQwen2VL(AdapterContract):
    around_video = around_image = ((VISION_START,), (VISION_END,))

    def build_model(self) -> Qwen2VLForConditionalGeneration:
        torch.manual_seed(0)
        config = Qwen2VLConfig(text_config=TEXT | ROPE_3D, vision_config=VISION, **IDS)
        return Qwen2VLForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[frames, 4, 6 + 2 * (seed % 2)]])
        return {"pixel_values_videos": patches(grid, seed), "video_grid_thw": grid}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        return {"pixel_values": patches(grid, seed), "image_grid_thw": grid}

    def test_512_units_are_no_more_trouble_than_four(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row(frames=(512,)))
        output, report = run(model, HALF, inputs)
        assert report.keeps[0].shape == (512, 6)
        assert (report.baseline_tokens, report.kept_tokens) == (3072, 1536)
        assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] - 1536 + STEPS - 1
