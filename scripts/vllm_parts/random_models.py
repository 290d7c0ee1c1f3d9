"""Checkpoints of families that have no bundled model: the real classes, small, with random weights.

Weights are drawn wide, so that attention looks at something and every answer depends on every visual token.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vidsieve.bundled.train.package import TEMPLATES

SPECIALS = (
    "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>",
)  # fmt: skip
"""Their ids are their places; bytes follow."""
ID = {word: number for number, word in enumerate(SPECIALS)}
PATCH = 8
TEXT: dict[str, Any] = {
    "vocab_size": len(SPECIALS) + 256,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": ID["<|user|>"],
    "eos_token_id": ID["<|end|>"],
    "pad_token_id": ID["<|endoftext|>"],
}
QWEN_IDS: dict[str, Any] = {
    "image_token_id": ID["<|image_pad|>"],
    "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}
QWEN_TOWER = {
    "depth": 3, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 128, "num_heads": 2, "patch_size": PATCH,
}  # fmt: skip


def _qwen2_5_vl() -> torch.nn.Module:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    vision = QWEN_TOWER | {"window_size": 32, "fullatt_block_indexes": [1], "tokens_per_second": 4}
    text = TEXT | {"rope_parameters": rope}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_IDS))


def _qwen3_vl() -> torch.nn.Module:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = QWEN_TOWER | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = TEXT | {"rope_parameters": rope, "head_dim": 32}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS))


def _internvl3() -> torch.nn.Module:
    vision = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": [64, 64], "patch_size": [PATCH, PATCH],
    }  # fmt: skip
    config = InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        vision_config=vision,
        image_token_id=ID["<IMG_CONTEXT>"],
        image_seq_length=16,
    )
    return InternVLForConditionalGeneration(config)


_COMMON = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
    "resample": 3,
}
_CUT = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}


def _qwen_files(video: str, processor: str, image_edges: tuple[int, int], video_edges: tuple[int, int]) -> Any:
    """Processor settings of Qwen's families; edges are the least and most pixels of a picture."""
    image_size, video_size = (
        dict(zip(("shortest_edge", "longest_edge"), edges, strict=True)) for edges in (image_edges, video_edges)
    )
    common = {**_COMMON, **_CUT, "processor_class": processor}
    return {
        "preprocessor_config.json": {**common, "size": image_size, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {
            **common, "size": video_size, "video_processor_type": video, "cap_pixels_per_frame": False,
        },
        "processor_config.json": {"processor_class": processor},
    }  # fmt: skip


def _internvl_files() -> Any:
    common = {**_COMMON, "size": {"height": 64, "width": 64}, "processor_class": "InternVLProcessor"}
    tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    return {
        "preprocessor_config.json": {**common, **tiles, "image_processor_type": "GotOcr2ImageProcessor"},
        "video_preprocessor_config.json": {**common, "video_processor_type": "InternVLVideoProcessor"},
        "processor_config.json": {"processor_class": "InternVLProcessor", "image_seq_length": 16},
    }


@dataclass(frozen=True)
class RandomModel:
    """What is built, how its pictures are prepared, its special tokens by the names its processor reads, its chats."""

    build: Callable[[], torch.nn.Module]
    files: Callable[[], dict[str, dict[str, Any]]]
    tokens: dict[str, str]
    template: str = TEMPLATES["qwen2_vl"]


_QWEN_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
_AREA = 64 * 64
RANDOM_MODELS = {
    "qwen2.5-vl-random": RandomModel(
        _qwen2_5_vl,
        lambda: _qwen_files("Qwen2VLVideoProcessor", "Qwen2_5_VLProcessor", (_AREA, _AREA), (_AREA, _AREA)),
        _QWEN_TOKENS,
    ),
    "qwen3-vl-random": RandomModel(
        _qwen3_vl,
        lambda: _qwen_files("Qwen3VLVideoProcessor", "Qwen3VLProcessor", (_AREA, _AREA), (_AREA, 24 * _AREA)),
        _QWEN_TOKENS,
    ),
    "internvl3-random": RandomModel(
        _internvl3,
        _internvl_files,
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        TEMPLATES["llava_onevision"].replace("<image>", "<IMG_CONTEXT>"),
    ),
}


def save_random(name: str, folder: Path) -> None:
    """Build the model and write it, with its tokenizer and processors, as `from_pretrained` reads it."""
    made = RANDOM_MODELS[name]
    torch.manual_seed(0)
    model = made.build().eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() > 1 and "norm" not in key:
                value.normal_(std=value[0].numel() ** -0.5)
            elif key.endswith("bias"):
                value.normal_(std=0.1)
    model.save_pretrained(folder)
    _tokenizer(made.tokens, made.template).save_pretrained(folder)
    for file, settings in made.files().items():
        (folder / file).write_text(json.dumps(settings, indent=2) + "\n")


def _tokenizer(tokens: dict[str, str], template: str) -> PreTrainedTokenizerFast:
    """A token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ID | {letter: len(SPECIALS) + number for number, letter in enumerate(letters)}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|endoftext|>",
        eos_token="<|end|>",
        padding_side="left",
        model_max_length=8192,
        chat_template=template,
        extra_special_tokens=tokens,
    )
