"""Sizes and pixels that the tiny random models of these tests share."""

from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO, VISION_START, VISION_END = 90, 91, 92, 93
IDS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
LLAVA_IDS: dict[str, Any] = {"image_token_index": IMAGE, "video_token_index": VIDEO}
TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
ROPE_3D = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
INTERLEAVED_3D = {
    "head_dim": 16,
    "rope_parameters": ROPE_3D["rope_parameters"] | {"mrope_interleaved": True},
}
_QWEN3_TOWER = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_heads": 2}
QWEN3_TOWER = _QWEN3_TOWER | {"patch_size": 4, "num_position_embeddings": 64}
DEEPSTACK = QWEN3_TOWER | {"deepstack_visual_indexes": [0, 1]}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, "image_size": 20} | _TOWER
CLIP = {"model_type": "clip_vision_model", "projection_dim": 32, "image_size": 24} | _TOWER


def patches(grid: Tensor, seed: int, deep: int = 2) -> Tensor:
    """Random patches of 4x4 pixels, so many frames deep, for a grid of them."""
    return torch.randn(int(grid.prod()), 3 * deep * 4 * 4, generator=torch.Generator().manual_seed(seed))


def pixels(count: int, side: int, seed: int) -> Tensor:
    """Random frames (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
