"""LLaVA-OneVision obeys the laws of an adapter; its newline row is no visual token and always stays."""

from typing import Any

import pytest
import torch
from adapters.tiny import LLAVA_IDS, SIGLIP, TEXT, pixels
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import HALF, STEPS, Row, layouts_of, run


class TestLlavaOnevision(AdapterContract):
    cannot = frozenset({"uneven videos"})

    def build_model(self) -> LlavaOnevisionForConditionalGeneration:
        torch.manual_seed(0)
        config = LlavaOnevisionConfig(
            text_config=TEXT | {"model_type": "qwen2"},
            vision_config=SIGLIP,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[20, 20]],
            **LLAVA_IDS,
        )
        return LlavaOnevisionForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        return {"pixel_values_videos": pixels(frames, 20, seed)[None]}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        return {"pixel_values": pixels(2, 20, seed)[None], "image_sizes": torch.tensor([[20, 20]])}

    def pooled(self, model: Any, inputs: dict[str, Any], values: list[Tensor]) -> Tensor:
        grid = torch.cat(values).view(-1, 1, 5, 5)
        return interpolate(grid, size=(3, 3), mode="bilinear").flatten()

    def pixels_pooled(self, model: Any, change: Tensor) -> Tensor:
        return self.pooled(model, {}, [change.unflatten(2, (5, 4)).unflatten(1, (5, 4)).mean(dim=(2, 4)).flatten(1)])

    @pytest.mark.parametrize("way", ["model", "static cache"])
    def test_compiled_as_a_whole_it_answers_as_the_plain_one(self, model: Any, way: str) -> None:
        self.answers_as_uncompiled(model, way)

    def test_an_odd_patch_grid_is_pooled_up_and_the_newline_is_structural(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        (layout,) = layouts_of(model, inputs)
        assert (layout.frames, layout.tokens, layout.structural) == (4, 9, 1)
        output, report = run(model, HALF, inputs)
        assert (report.baseline_tokens, report.kept_tokens) == (36, 18)
        assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] - 18 + STEPS - 1
