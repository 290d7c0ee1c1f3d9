"""From a trained model to a checkpoint folder that transformers and vidsieve.media read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.configs import PATCH, Model
from vidsieve.bundled.train.vision import MEAN, MERGE, STD
from vidsieve.bundled.words import SPECIALS, TOKEN_ID

_TURN = (
    "{%% for message in messages %%}{{ '<|user|>' if message.role == 'user' else '<|assistant|>' }}"
    "{%% if message.content is string %%}{{ message.content }}{%% else %%}{%% for part in message.content %%}"
    "{%% if part.type == 'video' %%}%s{%% elif part.type == 'image' %%}%s{%% else %%}{{ part.text }}{%% endif %%}"
    "{%% endfor %%}{%% endif %%}{%% if message.role != 'user' %%}<|end|>{%% endif %%}"
    "{%% endfor %%}{%% if add_generation_prompt %%}<|assistant|>{%% endif %%}"
)
TEMPLATES = {
    "qwen2_vl": _TURN % ("<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>"),
    "llava_onevision": _TURN % ("<video>", "<image>"),
}
MAX_NEW_TOKENS = 2
"""One word and the end."""


def save_package(model: Model, shape: ModelShape, folder: Path) -> None:
    """Weights in float32, configurations, tokenizer and preprocessing settings."""
    model.generation_config = GenerationConfig(
        eos_token_id=TOKEN_ID["<|end|>"],
        pad_token_id=TOKEN_ID["<|endoftext|>"],
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
    model.save_pretrained(folder)
    _tokenizer(model.config.model_type, shape.vocabulary).save_pretrained(folder)
    for name, settings in _preprocessing(model.config.model_type, shape.side).items():
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n")


def _tokenizer(family: str, vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """One id a word; capitals are lowered, anything outside the vocabulary is `<unk>`."""
    words = Tokenizer(models.WordLevel(vocab={word: TOKEN_ID[word] for word in vocabulary}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    assert words.get_vocab_size() == len(vocabulary)
    video, image = ("<|video_pad|>", "<|image_pad|>") if family == "qwen2_vl" else ("<video>", "<image>")
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|end|>",
        padding_side="left",
        model_max_length=4096,
        chat_template=TEMPLATES[family],
        extra_special_tokens={"video_token": video, "image_token": image},
    )


def _preprocessing(family: str, side: int) -> dict[str, dict[str, Any]]:
    """File name → settings of transformers' image, video and joint processors."""
    common = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
    }
    if family == "qwen2_vl":
        # Clips of other sizes are brought to the area the model was trained on.
        size = {"shortest_edge": side**2, "longest_edge": side**2}
        cut = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": MERGE, "size": size}
        names = ("Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", "Qwen2VLProcessor")
        video_extra: dict[str, Any] = {"cap_pixels_per_frame": False}
        joint: dict[str, Any] = {}
    else:
        cut = {"size": {"height": side, "width": side}}
        names = ("LlavaOnevisionImageProcessor", "LlavaOnevisionVideoProcessor", "LlavaOnevisionProcessor")
        video_extra = {}
        joint = {
            "num_image_tokens": (side // PATCH) ** 2,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            "video_token": "<video>",
            "image_token": "<image>",
        }
    image, video, processor = names
    image_extra = {"image_grid_pinpoints": [[side, side]]} if family != "qwen2_vl" else {}
    return {
        "preprocessor_config.json": {
            **common, **cut, **image_extra, "image_processor_type": image, "processor_class": processor
        },
        "video_preprocessor_config.json": {
            **common, **cut, **video_extra, "video_processor_type": video, "processor_class": processor
        },
        "processor_config.json": {**joint, "processor_class": processor},
    }  # fmt: skip
