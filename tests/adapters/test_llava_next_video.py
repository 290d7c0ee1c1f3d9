"""LLaVA-NeXT-Video obeys the laws of an adapter."""

from typing import Any

import torch
from adapters.tiny import CLIP, LLAVA_IDS, TEXT, pixels
from torch import Tensor
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import FEATURES_CAN_BE_SLICED


class TestLlavaNextVideo(AdapterContract):
    every_layer_law = False
    cannot = frozenset({"uneven videos"})
    # transformers 5.19 counts this model's frames where it should count feature rows, and raises
    unpatched_beams_work = FEATURES_CAN_BE_SLICED

    def build_model(self) -> LlavaNextVideoForConditionalGeneration:
        torch.manual_seed(0)
        config = LlavaNextVideoConfig(
            text_config=TEXT | {"model_type": "llama"},
            vision_config=CLIP,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[24, 24]],
            **LLAVA_IDS,
        )
        return LlavaNextVideoForConditionalGeneration(config).eval()

    class_rows = 1

    def pooled(self, model: Any, inputs: dict[str, Any], values: list[Tensor]) -> Tensor:
        grid = torch.cat(values).view(-1, 3, 2, 3, 2)
        return grid.mean(dim=(2, 4)).flatten()

    def pixels_pooled(self, model: Any, change: Tensor) -> Tensor:
        return change.unflatten(2, (3, 8)).unflatten(1, (3, 8)).mean(dim=(2, 4))

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        return {"pixel_values_videos": pixels(frames, 24, seed)[None]}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        return {"pixel_values": pixels(2, 24, seed)[None], "image_sizes": torch.tensor([[24, 24]])}
