"""Qwen2-VL obeys the laws of an adapter."""

import torch
from adapters.tiny import IDS, ROPE_3D, TEXT, VISION_END, VISION_START, patches
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from vidsieve.testing import AdapterContract

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
