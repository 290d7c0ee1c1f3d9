"""Makes tests/data/media: tiny checkpoints' settings, and what transformers' own processors give for them.

Needs an environment of its own, because transformers' video processors need torchvision, which the package
does without:

    python -m venv golden
    golden/bin/pip install torch==2.13.0 transformers==5.23.0 pillow jinja2 numpy num2words
    golden/bin/pip install --no-deps torchvision==0.28.0
    golden/bin/python scripts/make_media_golden.py            # writes
    golden/bin/python scripts/make_media_golden.py --check    # compares, writes nothing

With the package installed there too, `--package` compares transformers' processor inside `load_processor`, which
then finds a working torchvision, with the stored arrays. `--only FAMILY` makes or checks one family's.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "media"
sys.path.insert(0, str(ROOT / "tests" / "media"))

# The published torchvision is built for CUDA: beside a CPU-only torch its operators cannot be loaded and its
# import fails on the schemas below. The transforms need none of them.
SCHEMAS = torch.library.Library("torchvision", "DEF")
SCHEMAS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
SCHEMAS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import checkpoints  # noqa: E402
import transformers  # noqa: E402
from golden_cases import CASES, LATER, LONG, Case  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<|vision_start|>", "<|vision_end|>", "<video>", "<image>"]
WORDS = ["user", "assistant", ":", "?", *sorted({word for text in LONG for word in text.split()})]

USER_FIRST = "{% for m in messages %}user : {% for c in m.content %}"
ANSWER_NEXT = "{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
TEXT = "{% if c.type == 'text' %}{{ c.text }}{% endif %}"
QWEN_TEMPLATE = (
    USER_FIRST + "{% if c.type == 'video' %}<|vision_start|><video><|vision_end|>{% endif %}" + TEXT + ANSWER_NEXT
)
LLAVA_TEMPLATE = USER_FIRST + "{% if c.type == 'video' %}<video>{% endif %}" + TEXT + ANSWER_NEXT

TINY_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": len(SPECIAL) + len(WORDS),
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
TINY_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4, "projection_dim": 32,
}  # fmt: skip
NORMALISATION = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
QWEN_VIDEO = {
    "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2,
    "size": {"shortest_edge": 256, "longest_edge": 768}, **NORMALISATION,
}  # fmt: skip


def token_id(token: str) -> int:
    return (SPECIAL + WORDS).index(token)


def tokenizer(family: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of whole words; LLaVA-NeXT-Video's begins a sequence with <s>, as Llama's does."""
    vocab = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if family == "llava_next_video":
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=SPECIAL[4:],
    )  # fmt: skip


def qwen_config(family: str) -> transformers.PretrainedConfig:
    vision = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1], "tokens_per_second": 2}
    maker = transformers.Qwen2VLConfig if family == "qwen2_vl" else transformers.Qwen2_5_VLConfig
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return maker(
        text_config=TINY_TEXT | {"rope_parameters": rope}, vision_config=vision,
        video_token_id=token_id("<video>"), image_token_id=token_id("<image>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"),
    )  # fmt: skip


def llava_config(family: str) -> transformers.PretrainedConfig:
    if family == "llava_onevision":
        return transformers.LlavaOnevisionConfig(
            text_config=TINY_TEXT | {"model_type": "qwen2"},
            vision_config=TINY_VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
            video_token_index=token_id("<video>"), image_token_index=token_id("<image>"),
            vision_feature_layer=-1, vision_feature_select_strategy="full",
        )  # fmt: skip
    return transformers.LlavaNextVideoConfig(
        text_config=TINY_TEXT | {"model_type": "llama"},
        vision_config=TINY_VISION | {"model_type": "clip_vision_model"},
        video_token_index=token_id("<video>"), image_token_index=token_id("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip


def settings(family: str) -> dict[str, dict]:
    """The JSON files of a checkpoint, by name; each family keeps its settings in another place."""
    if family == "qwen2_vl":
        return {"preprocessor_config.json": QWEN_VIDEO}
    if family == "qwen2_5_vl":
        old = {k: v for k, v in QWEN_VIDEO.items() if k != "size"} | {"min_pixels": 256, "max_pixels": 768}
        return {"video_preprocessor_config.json": old, "preprocessor_config.json": {"patch_size": 99}}
    if family == "llava_onevision":
        video = {"size": {"height": 16, "width": 16}, **NORMALISATION}
        around = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
        image = {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 9, "width": 9}}
        nested = {"video_processor": video, **around}
        return {"processor_config.json": nested, "preprocessor_config.json": image}
    crop = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    image = {"image_processor_type": "LlavaNextImageProcessor"}
    return {"video_preprocessor_config.json": crop | NORMALISATION, "preprocessor_config.json": image}


def write_checkpoint(family: str) -> None:
    """A checkpoint's folder without weights."""
    folder = DATA / family
    folder.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer(family)
    config = qwen_config(family) if family.startswith("qwen") else llava_config(family)
    if family.startswith("qwen"):
        tokens.chat_template = QWEN_TEMPLATE
    tokens.save_pretrained(folder)
    config.save_pretrained(folder)
    for name, content in settings(family).items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    if family == "llava_onevision":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA_TEMPLATE}) + "\n")


def hf_processor(case: Case) -> transformers.ProcessorMixin:
    """transformers' processor, put together by hand from the settings the folder should give."""
    tokens = tokenizer(case.family)
    if case.family.startswith("qwen"):
        video = transformers.Qwen2VLVideoProcessor(**({"cap_pixels_per_frame": False} | QWEN_VIDEO | case.video))
        maker = transformers.Qwen2VLProcessor if case.family == "qwen2_vl" else transformers.Qwen2_5_VLProcessor
        processor = maker(transformers.Qwen2VLImageProcessor(), tokens, video, chat_template=QWEN_TEMPLATE)
        processor.video_token, processor.video_token_id = "<video>", token_id("<video>")
        return processor
    if case.family == "llava_onevision":
        options = {"size": {"height": 16, "width": 16}, **NORMALISATION} | case.video
        return transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessor(), tokens,
            transformers.LlavaOnevisionVideoProcessor(**options),
            num_image_tokens=(27 * 27 if case.big else 16),
            vision_feature_select_strategy="full", chat_template=LLAVA_TEMPLATE,
        )  # fmt: skip
    options = settings(case.family)["video_preprocessor_config.json"] | case.video
    return transformers.LlavaNextVideoProcessor(
        transformers.LlavaNextVideoVideoProcessor(**options), transformers.LlavaNextImageProcessor(), tokens,
        patch_size=14 if case.big else 4, vision_feature_select_strategy="default",
    )  # fmt: skip


def later_processor(case: Case) -> transformers.ProcessorMixin:
    """transformers' processor of a family in checkpoints.py."""
    tokens, chat = checkpoints.tokenizer(case.family), checkpoints.template(case.family)
    video = (BARE.get(case.family, {}) if case.bare else checkpoints.SETTINGS[case.family]) | case.video
    qwen = transformers.Qwen2VLImageProcessor()
    if case.family == "qwen3-vl":
        moving = transformers.Qwen3VLVideoProcessor(**({"cap_pixels_per_frame": False} | video))
        return transformers.Qwen3VLProcessor(qwen, tokens, moving, chat_template=chat)
    if case.family == "glm4v":
        maker = transformers.Glm4vProcessor
        return maker(
            transformers.Glm4vImageProcessor(), tokens, transformers.Glm4vVideoProcessor(**video), chat_template=chat
        )
    if case.family == "ernie-4.5-vl":
        image, moving = transformers.Ernie4_5_VLMoeImageProcessor(), transformers.Ernie4_5_VLMoeVideoProcessor(**video)
        return transformers.Ernie4_5_VLMoeProcessor(image, tokens, moving, chat_template=chat)
    if case.family == "videollama3":
        image, moving = transformers.VideoLlama3ImageProcessor(), transformers.VideoLlama3VideoProcessor(**video)
        return transformers.VideoLlama3Processor(image, tokens, moving, chat_template=chat)
    if case.family == "gemma4":
        hearing, image = transformers.Gemma4AudioFeatureExtractor(), transformers.Gemma4ImageProcessor()
        moving = transformers.Gemma4VideoProcessor(**video)
        return transformers.Gemma4Processor(hearing, image, tokens, moving, chat_template=chat)
    if case.family == "internvl3":
        image, moving = transformers.GotOcr2ImageProcessor(), transformers.InternVLVideoProcessor(**video)
        return transformers.InternVLProcessor(image, tokens, moving, image_seq_length=9, chat_template=chat)
    if case.family == "smolvlm2":
        image, moving = transformers.SmolVLMImageProcessor(), transformers.SmolVLMVideoProcessor(**video)
        return transformers.SmolVLMProcessor(image, tokens, moving, image_seq_len=9, chat_template=chat)
    if case.family == "video-llava":
        image, moving = transformers.VideoLlavaImageProcessor(), transformers.VideoLlavaVideoProcessor(**video)
        return transformers.VideoLlavaProcessor(image, moving, tokens, patch_size=8, chat_template=chat)
    assert case.family == "qwen2.5-omni"
    moving = transformers.Qwen2VLVideoProcessor(**({"cap_pixels_per_frame": False} | video))
    hearing = transformers.WhisperFeatureExtractor()
    return transformers.Qwen2_5OmniProcessor(qwen, moving, hearing, tokens, chat_template=chat)


BARE = {
    "qwen3-vl": checkpoints.PATCHES,
    "glm4v": checkpoints.PATCHES,
    "ernie-4.5-vl": checkpoints.PATCHES | {"draw_on_frames": False},
    "videollama3": checkpoints.PATCHES,
    "gemma4": {"patch_size": 4, "pooling_kernel_size": 2},
    "internvl3": {"size": {"height": 24, "width": 24}},
    "smolvlm2": {"max_image_size": {"longest_edge": 24}, "size": {"longest_edge": 96}},
    "video-llava": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
}
"""What transformers' classes would take of their own large models, where ours take the model's own."""


def prompts(case: Case, processor: transformers.ProcessorMixin) -> list[str]:
    """The prompts in the family's chat template; LLaVA-NeXT-Video here has none."""
    if processor.chat_template is None:
        pairs = zip(case.prompts, case.videos, strict=True)
        return ["<video>" * len(videos) + question for question, videos in pairs]
    chats = [
        [
            {
                "role": "user",
                "content": [{"type": "video"}] * len(videos) + [{"type": "text", "text": question}],
            }
        ]
        for question, videos in zip(case.prompts, case.videos, strict=True)
    ]
    return [processor.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]


def expected(case: Case) -> dict[str, np.ndarray]:
    """transformers' tensors for the case; a big one as the SHA-256 of its bytes, after its shape."""
    later = case.family in checkpoints.SPECIAL
    processor = later_processor(case) if later else hf_processor(case)
    videos = [video for row in case.videos for video in row]
    # Omni takes the rate of the frames, one for all videos, from its caller
    rate = {"fps": videos[0].count / videos[0].total * videos[0].fps} if case.family == "qwen2.5-omni" else {}
    inputs = processor(
        text=prompts(case, processor),
        videos=[torch.from_numpy(v.frames) for v in videos],
        video_metadata=[
            {
                "total_num_frames": v.total,
                "fps": v.fps,
                "duration": v.total / v.fps,
                "frames_indices": v.frame_index.tolist(),
            }
            for v in videos
        ],
        do_sample_frames=False, padding=True, padding_side="left", return_tensors="pt", **rate,
    )  # fmt: skip
    arrays = {k: v.numpy() for k, v in inputs.items() if k != "token_type_ids"}
    if case.big:
        pixels = arrays.pop("pixel_values_videos" if "pixel_values_videos" in arrays else "pixel_values")
        arrays["pixels_shape"] = np.array(pixels.shape)
        digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()
        arrays["pixels_sha256"] = np.frombuffer(digest, dtype=np.uint8)
    return arrays


def from_package(case: Case) -> dict[str, np.ndarray]:
    """The package's tensors for a small case, made by transformers' processor inside it."""
    from vidsieve.media.clip import Clip
    from vidsieve.media.processor_loading import load_processor

    folder = DATA / case.family
    processor = load_processor(folder, transformers.AutoConfig.from_pretrained(folder), prefer_hf=True)
    assert processor.kind == "transformers", processor.describe()

    def clip(video):
        index = torch.from_numpy(video.frame_index)
        return Clip(
            torch.from_numpy(video.frames), index / video.fps, video.fps, video.total / video.fps,
            "pattern", index, video.total,
        )  # fmt: skip

    inputs = processor.build_inputs(list(case.prompts), [[clip(v) for v in row] for row in case.videos])
    return {k: v.numpy() for k, v in inputs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--package", action="store_true")
    parser.add_argument("--only", metavar="FAMILY")
    options = parser.parse_args()
    file = DATA / "golden.npz"
    cases = [case for case in (*CASES, *LATER) if options.only in (None, case.family)]
    if not options.check and not options.package:
        for family in sorted({case.family for case in CASES if case in cases}):
            write_checkpoint(family)
        arrays = dict(np.load(file)) if options.only else {}
        arrays = {k: v for k, v in arrays.items() if not k.startswith(f"{options.only}/")}
        arrays |= {f"{c.family}/{c.name}/{k}": v for c in cases for k, v in expected(c).items()}
        np.savez_compressed(file, **arrays)
        print(f"{file}: {len(arrays)} arrays, {file.stat().st_size / 1024:.0f} KiB")
        return
    stored = np.load(file)
    if options.package:
        cases = [c for c in cases if c in CASES and not (c.big or c.video)]
    for case in cases:
        made = from_package(case) if options.package else expected(case)
        prefix = f"{case.family}/{case.name}/"
        names = {k.removeprefix(prefix) for k in stored.files if k.startswith(prefix)}
        wrong = names ^ set(made) | {k for k in names & set(made) if not np.array_equal(stored[prefix + k], made[k])}
        print(f"{prefix[:-1]}: {'differs: ' + ', '.join(sorted(wrong)) if wrong else 'equal'}")


if __name__ == "__main__":
    main()
