"""InternVL3 obeys the laws of an adapter, though its frames are images; real images are told from them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from adapters.tiny import IMAGE, TEXT, VISION_END, VISION_START, pixels
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from vidsieve.testing import AdapterContract

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


class TestInternVL3(AdapterContract):
    every_layer_law = False
    video_token = "image_token_id"
    fewest_frames = 2  # a lone picture is an image
    around_image = ((VISION_START,), (VISION_END,))

    def build_model(self) -> InternVLForConditionalGeneration:
        torch.manual_seed(0)
        config = InternVLConfig(
            text_config=TEXT | {"model_type": "qwen2"},
            vision_config=VISION | {"image_size": [24, 24], "patch_size": [4, 4]},
            image_token_id=IMAGE,
            vision_end_token_id=VISION_END,
        )
        return InternVLForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        return {"pixel_values": pixels(frames, 24, seed)}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        return {"pixel_values": pixels(3, 24, seed)}

    class_rows = 1

    def pooled(self, model: Any, inputs: dict[str, Any], values: list[Tensor]) -> Tensor:
        return torch.cat(values).view(-1, 3, 2, 3, 2).mean(dim=(2, 4)).flatten()

    def around(self, frame: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        number = [84 + int(digit) for digit in np.base_repr(frame + 1, 5)]
        return (81, *number, 82, 83, VISION_START), (VISION_END,)

    def runs(self, model: Any, video: Mapping[str, Tensor]) -> list[int]:
        return [9] * len(video["pixel_values"])
