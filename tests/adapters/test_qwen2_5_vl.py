"""Qwen2.5-VL obeys the laws of an adapter; the pace of its temporal patches reaches positions and stages."""

from typing import Any

import pytest
import torch
from adapters.tiny import IDS, ROPE_3D, TEXT, VISION_END, VISION_START, patches
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

import vidsieve
from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import KeepAll, Row, policy_of

VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "tokens_per_second": 2,
}


class TestQwen25VL(AdapterContract):
    every_layer_law = False
    around_video = around_image = ((VISION_START,), (VISION_END,))

    def build_model(self) -> Qwen2_5_VLForConditionalGeneration:
        torch.manual_seed(0)
        config = Qwen2_5_VLConfig(text_config=TEXT | ROPE_3D, vision_config=VISION, **IDS)
        return Qwen2_5_VLForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[frames, 8, 6 + 2 * (seed % 2)]])
        pace = torch.tensor([0.5 + 0.5 * (seed % 3)])
        return {"pixel_values_videos": patches(grid, seed), "video_grid_thw": grid, "second_per_grid_ts": pace}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        return {"pixel_values": patches(grid, seed), "image_grid_thw": grid}

    def pooled(self, model: Any, inputs: dict[str, Any], values: list[Tensor]) -> Tensor:
        """The tower sorts tokens by window; transformers says how."""
        tokens = super().pooled(model, inputs, values)
        vision = model.config.vision_config
        sizes = (vision.spatial_merge_size, vision.window_size, vision.patch_size)
        order, _ = get_vision_window_index(inputs["video_grid_thw"], *sizes)
        assert order.tolist() != sorted(order.tolist())
        return torch.zeros_like(tokens).index_copy(0, order, tokens)

    def test_stages_see_the_seconds_of_each_temporal_patch(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        class Times(KeepAll):
            def needs(self) -> frozenset[str]:
                return frozenset({"timestamps_s"})

        plan = vidsieve.Policy.plan
        monkeypatch.setattr(vidsieve.Policy, "plan", lambda *a, **k: seen.append(k["timestamps_s"]) or plan(*a, **k))
        with vidsieve.applied(model, policy_of(Times(), ratio=1.0)):
            model.generate(**self.make_inputs(model, Row(seed=1)), max_new_tokens=1)
        assert seen[0].tolist() == [0.0, 1.0, 2.0, 3.0]
