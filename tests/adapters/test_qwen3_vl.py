"""Qwen3-VL obeys the laws of an adapter: DeepStack rows go with their tokens, the text between frames stays."""

from typing import Any

import torch
from adapters.tiny import DEEPSTACK, IDS, INTERLEAVED_3D, TEXT, VISION_END, VISION_START, patches
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import HALF, STEPS, Row, language_inputs, run

TIMESTAMP = (81, 82)


class TestQwen3VL(AdapterContract):
    around_image = ((VISION_START,), (VISION_END,))
    around_frame = ((*TIMESTAMP, VISION_START), (VISION_END,))

    def build_model(self) -> Qwen3VLForConditionalGeneration:
        torch.manual_seed(0)
        config = Qwen3VLConfig(text_config=TEXT | INTERLEAVED_3D, vision_config=DEEPSTACK, **IDS)
        return Qwen3VLForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[frames, 4, 6 + 2 * (seed % 2)]])
        return {"pixel_values_videos": patches(grid, seed), "video_grid_thw": grid}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        return {"pixel_values": patches(grid, seed), "image_grid_thw": grid}

    def test_timestamps_stay_and_every_level_of_rows_is_cut(self, model: Any) -> None:
        inputs, seen = self.make_inputs(model, Row()), []

        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["deepstack_visual_embeds"])

        model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
        output, report = run(model, HALF, inputs)
        assert report.kept_tokens == 12
        assert [len(level) for level in seen[0]] == [12, 12]
        length = output.past_key_values.get_seq_length() - (STEPS - 1)
        assert length == inputs["input_ids"].shape[1] - 12
        whole = language_inputs(model, inputs)["deepstack_visual_embeds"]
        keep = report.keeps[0].flatten()
        for level, rows in zip(whole, seen[0], strict=True):
            assert torch.equal(level[keep], rows)
