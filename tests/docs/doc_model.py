"""A Qwen2-VL of a few thousand parameters with random weights, one video in its prompt; a trained model and a file."""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from vidsieve import BundledTask, write_dataset, write_video
from vidsieve.bundled.bundled_models import MODELS_FOLDER

FRAMES, HEIGHT, WIDTH = 4, 8, 8  # grid before the spatial merge of 2 x 2: 4 x 16 = 64 visual tokens
VIDEO_PAD, VISION_START, VISION_END = 60, 61, 62


def tiny_model_and_inputs() -> tuple[Any, dict[str, torch.Tensor]]:
    """The model in eval mode, and what its processor would make of one video and a question."""
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
        video_token_id=VIDEO_PAD,
        image_token_id=63,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    video = [VISION_START, *[VIDEO_PAD] * (FRAMES * HEIGHT * WIDTH // 4), VISION_END]
    ids = torch.tensor([[1, *video, 5, 6, 7]])
    patch = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    return model, {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == VIDEO_PAD).long() * 2,
        "pixel_values_videos": torch.randn(FRAMES * HEIGHT * WIDTH, patch),
        "video_grid_thw": torch.tensor([[FRAMES, HEIGHT, WIDTH]]),
    }


def bundled_checkpoint() -> str:
    """The folder of the smallest trained model."""
    return str(MODELS_FOLDER / "qwen2-vl-tiny")


def bundled_clip() -> str:
    """A clip that this model was taught to read, written into the current folder."""
    folder = Path("written")
    write_dataset(BundledTask(), "heldout", 1, folder, write_video=write_video)
    return str(next(folder.glob("*.mp4")).rename("clip.mp4"))
