"""GLM-4V obeys the laws of an adapter, though its videos use the placeholder of images."""

from typing import Any

import torch
from adapters.tiny import IMAGE, ROPE_3D, TEXT, VIDEO, patches
from torch import Tensor
from transformers import Glm4vConfig, Glm4vForConditionalGeneration

from vidsieve.testing import AdapterContract

START, END, OPEN, CLOSE = 92, 93, 94, 95
TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_heads": 2}


class TestGlm4V(AdapterContract):
    every_layer_law = False
    video_token = "image_token_id"
    around_video = ((OPEN,), (CLOSE,))
    around_frame = ((START,), (END, 79))
    around_image = ((START,), (END,))
    cannot = frozenset({"images", "beams", "chunks"})
    ends_without_words = False  # the second behind the last frame

    def build_model(self) -> Glm4vForConditionalGeneration:
        torch.manual_seed(0)
        config = Glm4vConfig(
            text_config=TEXT | ROPE_3D,
            vision_config=TOWER | {"patch_size": 4, "image_size": 16},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
            video_start_token_id=OPEN,
            video_end_token_id=CLOSE,
        )
        return Glm4vForConditionalGeneration(config).eval()

    def make_video(self, seed: int, frames: int = 4) -> dict[str, Tensor]:
        grid = torch.tensor([[frames, 4, 6 + 2 * (seed % 2)]])
        return {"pixel_values_videos": patches(grid, seed), "video_grid_thw": grid}

    def make_image(self, seed: int) -> dict[str, Tensor]:
        grid = torch.tensor([[1, 4, 6]])
        return {"pixel_values": patches(grid, seed), "image_grid_thw": grid}

    def patch_states(self, model: Any, taken: dict[str, Any]) -> Tensor:
        """What leaves the last block: a convolution makes tokens of it before the vision side gives anything out."""
        seen: list[Tensor] = []
        handle = model.base_model.visual.blocks[-1].register_forward_hook(lambda *of: seen.append(of[2]))
        super().patch_states(model, taken)
        handle.remove()
        return seen[0]
