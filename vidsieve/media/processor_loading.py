"""The processor of a checkpoint: ours for the families that have one, else transformers' own."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from vidsieve.framework.errors import MediaError, ModelError, UsageError
from vidsieve.media import frame_encoders as frames
from vidsieve.media import patch_encoders as patches
from vidsieve.media.encoder import Encoder
from vidsieve.media.processor import Processor, TransformersProcessor, VidsieveProcessor
from vidsieve.media.prompter import Prompter
from vidsieve.media.settings import Settings, check_supported, load_settings

ENCODERS: dict[str, Any] = {
    "ernie4_5_vl_moe": patches.ErnieEncoder,
    "gemma4": patches.Gemma4Encoder,
    "glm4v": patches.TimedPatchEncoder,
    "glm4v_moe": patches.TimedPatchEncoder,
    "internvl": frames.InternVLEncoder,
    "llava_next_video": frames.CroppedEncoder,
    "llava_onevision": frames.LlavaOnevisionEncoder,
    "qwen2_5_omni_thinker": patches.Qwen2VLEncoder,
    "qwen2_5_vl": patches.Qwen2VLEncoder,
    "qwen2_vl": patches.Qwen2VLEncoder,
    "qwen3_5": patches.TimedPatchEncoder,
    "qwen3_5_moe": patches.TimedPatchEncoder,
    "qwen3_vl": patches.TimedPatchEncoder,
    "qwen3_vl_moe": patches.TimedPatchEncoder,
    "smolvlm": frames.SmolVLMEncoder,
    "video_llama_3": patches.VideoLlama3Encoder,
    "video_llava": frames.CroppedEncoder,
}
"""By the model type of the configuration."""


def load_processor(
    model_dir_or_id: str | Path,
    model_config: PretrainedConfig,
    *,
    max_pixels: int | None = None,
    prefer_hf: bool = False,
    revision: str | None = None,
) -> Processor:
    """Load the processor for the model with `model_config`, whose folder or hub id is `model_dir_or_id`.

    Ours serves every family that Vidsieve has an adapter for, and gives the tensors of transformers' own; that one,
    which needs torchvision, serves other families and settings that ours cannot follow.

    max_pixels: most pixels of a frame; a family with one frame size refuses a smaller cap, and so does transformers'
    processor. prefer_hf: use transformers' processor where torchvision works and the processor can be built.
    revision: of a hub repository; the one the model was loaded from unless given.
    Raises ModelError for a model that neither can serve, MediaError for settings that only transformers' could follow.
    """
    if max_pixels is not None and max_pixels < 1:
        raise UsageError(f"max_pixels: pixels of a frame, at least 1, got {max_pixels}")
    revision = revision or getattr(model_config, "_commit_hash", None)
    is_ernie = model_config.model_type.startswith("ernie")
    settings = load_settings(model_dir_or_id, revision=revision, with_font=is_ernie)
    tokenizer = _tokenizer(model_dir_or_id, revision)
    prompter = Prompter.build(tokenizer, model_config, settings.chat_template)
    encoder: Encoder | None = None
    unsupported: MediaError | None = None
    try:
        encoder = build_encoder(model_config, settings, max_pixels, model_dir_or_id)
    except MediaError as error:
        unsupported = error
    if encoder is not None and not prefer_hf:
        return VidsieveProcessor(prompter, encoder)
    reason = "torchvision is not installed"
    if find_spec("torchvision") is not None:
        try:
            theirs = TransformersProcessor.build(model_dir_or_id, model_config, prompter, revision)
        except Exception as error:  # whatever is wrong there, ours gives the same tensors
            reason = f"transformers' own cannot be used: {_first_line(error)}"
        else:
            return _uncapped(theirs, max_pixels)
    if encoder is not None:
        return VidsieveProcessor(prompter, encoder, reason=reason)
    raise unsupported or ModelError(
        f"{model_dir_or_id}: no preprocessing for model type {model_config.model_type!r}; known are "
        f"{', '.join(ENCODERS)}. Others need transformers' own, with a working torchvision: {reason}"
    )


def build_encoder(
    model_config: PretrainedConfig, settings: Settings, max_pixels: int | None, checkpoint: str | Path
) -> Encoder | None:
    """Build the encoder for a model, None for a family without one. `max_pixels` caps the pixels of a frame.

    Raises:
        MediaError: settings of `checkpoint` that it cannot follow.
        UsageError: a cap that cannot be kept.
    """
    encoder = ENCODERS.get(model_config.model_type)
    if encoder is None:
        return None
    check_supported(settings, encoder.required, checkpoint)
    return encoder.from_settings(model_config, settings, max_pixels)


def _uncapped(processor: TransformersProcessor, max_pixels: int | None) -> TransformersProcessor:
    """Return the processor, unless it was to keep a cap, which each family's settings would need in their own way."""
    if max_pixels is not None:
        raise UsageError(
            f"max_pixels: {processor.describe()} resizes frames by the checkpoint's own settings, a cap of "
            f"{max_pixels} cannot be kept; leave it out"
        )
    return processor


def _tokenizer(checkpoint: str | Path, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(str(checkpoint), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint}: its tokenizer cannot be loaded ({_first_line(error)}); "
            "is the folder complete, or the hub id right?"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
