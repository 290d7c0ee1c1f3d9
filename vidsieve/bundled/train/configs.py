"""Configurations of the two tiny models: stock transformers classes, about a million parameters each."""

from typing import Any, Literal

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from vidsieve.bundled.scene import SIDE
from vidsieve.bundled.words import TOKEN_ID

Family = Literal["qwen2-vl", "llava-onevision"]
Model = Any
"""A transformers model or a part of one: their parts are attributes that no type checker knows."""

PATCH = 8
WIDTH = 128
VISION_WIDTH = 64
VOCABULARY_ROWS = 96
TEXT = {
    "vocab_size": VOCABULARY_ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
    "bos_token_id": TOKEN_ID["<|user|>"],
    "eos_token_id": TOKEN_ID["<|end|>"],
    "pad_token_id": TOKEN_ID["<|endoftext|>"],
}


def build_model(family: Family) -> Model:
    """A model with random weights; seed torch before calling."""
    return _qwen2_vl() if family == "qwen2-vl" else _llava_onevision()


def _qwen2_vl() -> Model:
    # A small rope_theta and many time channels: with the default theta the width section barely turns on a 6x6 grid.
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [8, 4, 4]}}
    vision = {
        "depth": 3,
        "embed_dim": VISION_WIDTH,
        "hidden_size": WIDTH,
        "num_heads": 2,
        "mlp_ratio": 4,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.06,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=TOKEN_ID["<|image_pad|>"],
        video_token_id=TOKEN_ID["<|video_pad|>"],
        vision_start_token_id=TOKEN_ID["<|vision_start|>"],
        vision_end_token_id=TOKEN_ID["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def _llava_onevision() -> Model:
    text = {**TEXT, "model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 4 * VISION_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "vision_use_head": False,
    }
    config = LlavaOnevisionConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=TOKEN_ID["<image>"],
        video_token_index=TOKEN_ID["<video>"],
        image_grid_pinpoints=[[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)
