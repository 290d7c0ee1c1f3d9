"""What stands beside the weights of a checkpoint, for each family: tokenizer, chat template, video settings.

Only tokenizers and transformers here: the script that makes the golden arrays runs without this package. The ids are
those of the tiny models in tests/adapters.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LETTERS = [*"\n ?.,:<>[]/-=", *"0123456789", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
PAD, BOS, EOS, UNKNOWN, FIRST = 0, 1, 2, 3, 4
PLAIN = ("<pad>", "<s>", "</s>", "<unk>")
FIRST_SPECIAL = 90  # 90 is the image's placeholder everywhere, 91 the video's where there is one

VISION = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"} | VISION
OMNI = {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
ERNIE = {f"{kind}_{end}token": f"<|{kind}-{end}|>" for kind in ("image", "video") for end in ("start_", "end_")}
SPECIAL: dict[str, dict[str, str]] = {
    "qwen2-vl": QWEN,
    "qwen2.5-vl": QWEN,
    "qwen3-vl": QWEN,
    "qwen3.5": QWEN,
    "qwen2.5-omni": {"image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>"}
    | OMNI
    | {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
    "glm4v": {"image_token": "<|image|>", "video_token": "<|video|>"}
    | {"_1": "<|begin_of_image|>", "_2": "<|end_of_image|>", "_3": "<|begin_of_video|>", "_4": "<|end_of_video|>"},
    "ernie-4.5-vl": {"image_token": "<|image|>", "video_token": "<|video|>"} | ERNIE,
    "videollama3": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    "gemma4": {"image_token": "<|image|>", "video_token": "<|video|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    | {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
    "internvl3": {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    | {"start_image_token": "<img>", "end_image_token": "</img>"},
    "smolvlm2": {"image_token": "<image>", "_1": "<unused>", "global_image_token": "<global-img>"}
    | {"fake_image_token": "<fake_token_around_image>", "end_of_utterance_token": "<end_of_utterance>"},
    "video-llava": {"image_token": "<image>", "video_token": "<video>"},
    "llava-onevision": {"image_token": "<image>", "video_token": "<video>"},
    "llava-next-video": {"image_token": "<image>", "video_token": "<video>"},
}
AROUND_VIDEO = {
    "qwen2-vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen2.5-vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen2.5-omni": ("<|vision_start|>", "<|vision_end|>"),
    "qwen3-vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen3.5": ("<|vision_start|>", "<|vision_end|>"),
    "glm4v": ("<|begin_of_video|>", "<|end_of_video|>"),
    "ernie-4.5-vl": ("<|video-start_|>", "<|video-end_|>"),
}
NORMALISATION = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
PATCHES = {"patch_size": 4, "merge_size": 2}
FRAME = {"size": {"shortest_edge": 256, "longest_edge": 768}}
VIDEO = {"size": {"shortest_edge": 1024, "longest_edge": 3072}}
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2-vl": PATCHES | FRAME,
    "qwen2.5-vl": PATCHES | FRAME,
    "qwen3-vl": PATCHES | VIDEO,
    "qwen3.5": PATCHES | VIDEO | NORMALISATION,
    "qwen2.5-omni": PATCHES | FRAME,  # its processor has its own bounds, whatever stands here
    "glm4v": PATCHES | VIDEO,
    "ernie-4.5-vl": PATCHES | FRAME | NORMALISATION | {"draw_on_frames": False},
    "videollama3": PATCHES | VIDEO,
    "gemma4": {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70},
    "internvl3": {"size": {"height": 24, "width": 24}},
    "smolvlm2": {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}},
    "video-llava": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}} | NORMALISATION,
    "llava-onevision": {"size": {"height": 20, "width": 20}},
    "llava-next-video": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
}


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Every character is a token, so that what a processor writes can be read in the ids."""
    special = SPECIAL[family]
    words = [*PLAIN, *LETTERS]
    words += [f"<filler-{i}>" for i in range(len(words), FIRST_SPECIAL)] + [*special.values()]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=PLAIN[UNKNOWN]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    named = {name: token for name, token in special.items() if not name.startswith("_")}
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PLAIN[PAD], bos_token=PLAIN[BOS], eos_token=PLAIN[EOS], unk_token=PLAIN[UNKNOWN],
        extra_special_tokens=named,
    )  # fmt: skip
    made.add_tokens([*special.values()], special_tokens=True)
    return made


def template(family: str) -> str | None:
    """The chat template; SmolVLM2's own has no place for a video, and its processor takes another."""
    if family == "smolvlm2":
        return "{% for m in messages %}{{ m.content }}{% endfor %}"
    before, after = AROUND_VIDEO.get(family, ("", ""))
    video = SPECIAL[family]["video_token"]
    return (
        "{% for m in messages %}" + m_role() + "{% for c in m.content %}"
        "{% if c.type == 'video' %}" + before + video + after + "\n{% endif %}"
        "{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}\nassistant:{% endif %}"
    )


def m_role() -> str:
    return "{{ m.role }}: "


def write_checkpoint(family: str, folder: Path, **changes: Any) -> None:
    """Everything but configuration and weights; `changes` are further video settings."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(family)
    made.chat_template = template(family)
    made.save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(SETTINGS[family] | changes))
