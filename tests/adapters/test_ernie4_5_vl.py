"""Ernie-4.5-VL obeys the laws of an adapter; kept tokens go to the vision experts, text to those of text."""

from typing import Any

import torch
from adapters.tiny import IMAGE, TEXT, VIDEO, patches
from torch import Tensor
from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import FEATURES_CAN_BE_SLICED

IMAGE_START, IMAGE_END, VIDEO_START, VIDEO_END = 92, 93, 94, 95
TOWER = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4}
EXPERTS = {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
# in this family the height and width axes share one section
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}


class TestErnie45VL(AdapterContract):
    every_layer_law = False
    around_video = ((VIDEO_START,), (VIDEO_END,))
    around_image = ((IMAGE_START,), (IMAGE_END,))
    # without a cache it does not lengthen `moe_mm_token_type_ids`, and 5.19 does not cut them for a cache it is given
    cannot = frozenset(
        {"no cache", "lookup", "flat positions"} | (set() if FEATURES_CAN_BE_SLICED else {"second turn"})
    )

    def build_model(self) -> Ernie4_5_VLMoeForConditionalGeneration:
        torch.manual_seed(0)
        config = Ernie4_5_VLMoeConfig(
            text_config=TEXT | EXPERTS | ROPE,
            vision_config=TOWER,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=IMAGE_START,
            image_end_token_id=IMAGE_END,
            video_start_token_id=VIDEO_START,
            video_end_token_id=VIDEO_END,
        )
        return Ernie4_5_VLMoeForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[2 * frames, 4, 6 + 2 * (seed % 2)]])
        return {"pixel_values_videos": patches(grid, seed, deep=1), "video_grid_thw": grid}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        return {"pixel_values": patches(grid, seed, deep=1), "image_grid_thw": grid}

    def token_types(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        images, videos = (
            torch.isin(ids, torch.tensor(own))
            for own in ([IMAGE, IMAGE_START, IMAGE_END], [VIDEO, VIDEO_START, VIDEO_END])
        )
        return {"moe_mm_token_type_ids": images.int() + 2 * videos.int()}
