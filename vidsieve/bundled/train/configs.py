"""Configurations of the bundled models: stock transformers classes, one to three million parameters each."""

from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.words import TOKEN_ID

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
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
    "bos_token_id": TOKEN_ID["<|user|>"],
    "eos_token_id": TOKEN_ID["<|end|>"],
    "pad_token_id": TOKEN_ID["<|endoftext|>"],
}


def build_model(shape: ModelShape) -> Model:
    """A model with random weights; seed torch before calling."""
    return _qwen2_vl(shape) if shape.family == "qwen2-vl" else _llava_onevision(shape)


def _text(shape: ModelShape) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.mrope_section:
        rope["mrope_section"] = list(shape.mrope_section)
    return {**TEXT, "num_hidden_layers": shape.layers, "rope_parameters": rope}


def _qwen2_vl(shape: ModelShape) -> Model:
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
        text_config=_text(shape),
        vision_config=vision,
        image_token_id=TOKEN_ID["<|image_pad|>"],
        video_token_id=TOKEN_ID["<|video_pad|>"],
        vision_start_token_id=TOKEN_ID["<|vision_start|>"],
        vision_end_token_id=TOKEN_ID["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def _llava_onevision(shape: ModelShape) -> Model:
    side = shape.side
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 4 * VISION_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
        "vision_use_head": False,
    }
    config = LlavaOnevisionConfig(
        text_config={**_text(shape), "model_type": "qwen2"},
        vision_config=vision,
        image_token_index=TOKEN_ID["<image>"],
        video_token_index=TOKEN_ID["<video>"],
        image_grid_pinpoints=[[side, side], [side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)
