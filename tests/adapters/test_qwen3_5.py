"""Qwen3.5 obeys the laws of an adapter, as far as linear attention lets transformers itself."""

import torch
from adapters.tiny import IDS, INTERLEAVED_3D, QWEN3_TOWER, TEXT, VISION_END, VISION_START, patches
from torch import Tensor
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import FEATURES_CAN_BE_SLICED

LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}


class TestQwen35(AdapterContract):
    # in transformers 5.19 the beams of this model on pixels are not those on the features of the same pixels
    unpatched_beams_work = FEATURES_CAN_BE_SLICED
    around_image = ((VISION_START,), (VISION_END,))
    around_frame = ((81, 82, VISION_START), (VISION_END,))
    cannot = frozenset({"static cache", "lookup", "crop"})

    def build_model(self) -> Qwen3_5ForConditionalGeneration:
        torch.manual_seed(0)
        rope = INTERLEAVED_3D["rope_parameters"] | {"partial_rotary_factor": 1.0}
        text = TEXT | LINEAR | {"head_dim": 16, "rope_parameters": rope, "full_attention_interval": 2}
        config = Qwen3_5Config(text_config=text, vision_config=QWEN3_TOWER, **IDS)
        return Qwen3_5ForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[frames, 4, 6 + 2 * (seed % 2)]])
        return {"pixel_values_videos": patches(grid, seed), "video_grid_thw": grid}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        return {"pixel_values": patches(grid, seed), "image_grid_thw": grid}
