"""SmolVLM2 obeys the laws of an adapter, though its frames are images; real images are told from them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from adapters.tiny import IMAGE, TEXT, VISION_END, VISION_START, pixels
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from vidsieve.testing import AdapterContract

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


class TestSmolVLM2(AdapterContract):
    every_layer_law = False
    video_token = "image_token_id"
    fewest_frames = 2  # a lone picture is an image
    around_video = ((80,) * 25, ())
    around_frame = ((81, 82, 83, VISION_END, VISION_START), (VISION_END,))
    around_image = ((VISION_END, VISION_START), (VISION_END,))

    def build_model(self) -> SmolVLMForConditionalGeneration:
        torch.manual_seed(0)
        config = SmolVLMConfig(
            text_config=TEXT | {"model_type": "llama"},
            vision_config=VISION | {"image_size": 24, "patch_size": 4},
            image_token_id=IMAGE,
            pad_token_id=0,
            vision_end_token_id=VISION_END,
        )
        return SmolVLMForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        return {"pixel_values": pixels(frames, 24, seed)[None]}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        return {"pixel_values": pixels(1, 24, seed)[None]}

    def join(self, rows: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        own = [torch.cat([picture["pixel_values"][0] for picture in row]) for row in rows if row]
        return {"pixel_values": pad_sequence(own, batch_first=True)} if own else {}

    def runs(self, model: Any, video: Mapping[str, Tensor]) -> list[int]:
        return [9] * video["pixel_values"].shape[1]
