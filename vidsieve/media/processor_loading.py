"""The processor of a checkpoint: transformers' own where it can be built, else ours."""

from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from vidsieve.framework.errors import ModelError, UsageError
from vidsieve.media.encoder import build_encoder
from vidsieve.media.processor import Processor, VidsieveProcessor
from vidsieve.media.prompter import Prompter
from vidsieve.media.settings import check_supported, load_settings
from vidsieve.media.transformers_processor import TransformersProcessor

FAMILIES = ("llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen2_vl")


def load_processor(
    model_dir_or_id: str | Path,
    model_config: PretrainedConfig,
    *,
    max_pixels: int | None = None,
    prefer_hf: bool = True,
    revision: str | None = None,
) -> Processor:
    """The processor for the model with `model_config`, whose folder or hub id is `model_dir_or_id`.

    max_pixels: most pixels of a frame, whoever's code resizes it; a family with one frame size refuses a
    smaller cap. prefer_hf: use transformers' processor if torchvision works and the processor can be built.
    revision: of a hub repository; the one the model was loaded from unless given.
    Raises ModelError for a model that neither can serve, MediaError for settings that ours cannot follow.
    """
    if max_pixels is not None and max_pixels < 1:
        raise UsageError(f"max_pixels: pixels of a frame, at least 1, got {max_pixels}")
    revision = revision or getattr(model_config, "_commit_hash", None)
    settings = load_settings(model_dir_or_id, revision=revision)
    prompter = Prompter.build(_tokenizer(model_dir_or_id, revision), model_config, settings.chat_template)
    encoder = build_encoder(model_config, settings, max_pixels)
    reason = ""
    if prefer_hf and find_spec("torchvision") is None:
        reason = "torchvision is not installed, nor needed"
    elif prefer_hf:
        try:
            return TransformersProcessor.build(model_dir_or_id, model_config, prompter, encoder, max_pixels, revision)
        except Exception as error:  # whatever is wrong there, ours gives the same tensors
            reason = f"transformers' own cannot be used: {_first_line(error)}"
    if encoder is None:
        raise ModelError(
            f"{model_dir_or_id}: no preprocessing for model type {model_config.model_type!r}; known are "
            f"{', '.join(FAMILIES)}. {reason or 'Others need transformers with a working torchvision'}"
        )
    check_supported(settings, model_dir_or_id)
    return VidsieveProcessor(prompter, encoder, reason=reason)


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
