"""Video-LLaVA obeys the laws of an adapter; the [CLS] row of every frame is no visual token and always stays."""

from typing import Any

import torch
from adapters.tiny import CLIP, LLAVA_IDS, TEXT, pixels
from torch import Tensor
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import HALF, STEPS, Row, run


class TestVideoLlava(AdapterContract):
    every_layer_law = False
    cannot = frozenset({"uneven videos"})
    lead_rows = True
    class_rows = 1

    def build_model(self) -> VideoLlavaForConditionalGeneration:
        torch.manual_seed(0)
        text, tower = TEXT | {"model_type": "llama"}, CLIP | {"patch_size": 8}
        config = VideoLlavaConfig(text_config=text, vision_config=tower, vision_feature_layer=-1, **LLAVA_IDS)
        return VideoLlavaForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        return {"pixel_values_videos": pixels(frames, 24, seed)[None]}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        return {"pixel_values_images": pixels(1, 24, seed)}

    def pooled(self, model: Any, inputs: dict[str, Any], values: list[Tensor]) -> Tensor:
        return torch.cat(values).flatten()

    def pixels_pooled(self, model: Any, change: Tensor) -> Tensor:
        return change.unflatten(2, (3, 8)).unflatten(1, (3, 8)).mean(dim=(2, 4))

    def test_the_class_row_of_every_frame_stays(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        output, report = run(model, HALF, inputs)
        assert (report.baseline_tokens, report.kept_tokens) == (36, 18)
        assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] - 18 + STEPS - 1
