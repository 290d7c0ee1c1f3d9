"""VideoLLaMA3 obeys the laws of an adapter; tokens that its own processor left out count nowhere."""

from typing import Any

import torch
from adapters.tiny import IDS, TEXT, patches
from torch import Tensor
from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

from vidsieve.testing import AdapterContract
from vidsieve.testing.adapter_kit import HALF, Row, layouts_of, run

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


class TestVideoLLaMA3(AdapterContract):
    every_layer_law = False
    around_frame = ((81, 82), ())
    unpatched_beams_work = False  # transformers counts the rows that the mask leaves out
    bit_equal = False  # off by 1e-7 through another attention kernel

    def build_model(self) -> VideoLlama3ForConditionalGeneration:
        torch.manual_seed(0)
        tower = VISION | {"model_type": "video_llama_3_vision", "patch_size": 4}
        ids = {name: IDS[name] for name in ("image_token_id", "video_token_id")}
        config = VideoLlama3Config(text_config=TEXT | {"model_type": "qwen2"}, vision_config=tower, **ids)
        return VideoLlama3ForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[frames, 4, 6 + 2 * (seed % 2)]])
        kept = torch.ones(int(grid.prod()) // 4, dtype=torch.bool)
        kept[1 + seed % 3 :: 6][:2] = False
        video = {"pixel_values_videos": patches(grid, seed, deep=1), "video_grid_thw": grid}
        return video | {"video_merge_sizes": torch.tensor([2]), "video_compression_mask": kept}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        image = {"pixel_values": patches(grid, seed, deep=1), "image_grid_thw": grid}
        return image | {"image_merge_sizes": torch.tensor([1])}

    def test_what_the_processor_left_out_counts_nowhere(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        (layout,) = layouts_of(model, inputs)
        assert (layout.visual, layout.placeholders) == (24, 22)
        _, report = run(model, HALF, inputs)
        assert (report.baseline_tokens, report.kept_tokens) == (22, 11)
        assert not (report.keeps[0] & ~layout.alive).any()

    def test_a_video_of_which_nothing_was_left_out_needs_no_mask(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        mask = inputs.pop("video_compression_mask")
        assert int(mask.sum()) == 22
        places = inputs["input_ids"][0].eq(IDS["video_token_id"]).nonzero().squeeze(1)
        more = inputs["input_ids"][:, places[:1]].expand(1, 2)
        inputs["input_ids"] = torch.cat(
            [inputs["input_ids"][:, : places[0]], more, inputs["input_ids"][:, places[0] :]], 1
        )
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        _, report = run(model, HALF, inputs)
        assert (report.baseline_tokens, report.kept_tokens) == (24, 12)
