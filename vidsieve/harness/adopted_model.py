"""A model the caller loaded, with whatever processor came along, as the workbench uses it."""

from pathlib import Path
from typing import Any

from vidsieve.framework.errors import ModelError, UsageError
from vidsieve.harness.model_choice import Choice
from vidsieve.harness.model_loading import Loaded
from vidsieve.harness.setup import Setup

FIXED = ("model", "checkpoint", "device", "attn")


def adopt(model: Any, processor: Any, setup: Setup) -> Loaded:
    """Take over a loaded transformers model; it is put into eval mode and left where it is.

    Raises:
        UsageError: options that only loading could honour.
        ModelError: no adapter for its class, or no processor to be had.
    """
    from vidsieve.adapters.apply import adapter_for, unwrapped

    model = unwrapped(model)
    adapter = adapter_for(model)
    defaults = Setup()
    for name in (*FIXED, "dtype"):
        if getattr(setup, name) != getattr(defaults, name):
            raise UsageError(f"{name}: is fixed by the loaded model; leave it out, or pass the model by name.")
    if setup.threads is not None:
        import torch

        torch.set_num_threads(setup.threads)
    origin = str(getattr(model.config, "_name_or_path", "") or "")
    folder = Path(origin).resolve() if origin and Path(origin).is_dir() else None
    choice = Choice(
        asked=adapter.family,
        kind="folder",
        name=folder.name if folder else origin or type(model).__name__,
        folder=folder,
        revision=getattr(model.config, "_commit_hash", None),
        family=adapter.family,
    )
    return Loaded(
        model=model.eval(), processor=_processor(processor, model, origin, setup), adapter=adapter, choice=choice
    )


def _processor(given: Any, model: Any, origin: str, setup: Setup) -> Any:
    """Ours as it is, transformers' wrapped, a name loaded; nothing: from where the model came from."""
    from vidsieve.media import Processor, load_processor

    if isinstance(given, Processor):
        return given
    if given is None and not origin:
        raise ModelError("tune: the model was not loaded from a checkpoint, so it has no processor; pass processor=...")
    if given is None or isinstance(given, str | Path):
        return load_processor(given or origin, model.config, max_pixels=setup.max_pixels)
    from vidsieve.media.processor import VidsieveProcessor
    from vidsieve.media.processor_loading import build_encoder
    from vidsieve.media.prompter import Prompter
    from vidsieve.media.settings import Settings

    video = getattr(given, "video_processor", None)
    font = getattr(video, "font", None)
    settings = Settings(
        video=video.to_dict() if video is not None else {},
        chat_template=getattr(given, "chat_template", None),
        font=Path(font) if font and Path(font).is_file() else None,
    )
    encoder = build_encoder(model.config, settings, setup.max_pixels, "processor")
    if encoder is None:
        raise ModelError(
            f"tune: no preprocessing for model type {model.config.model_type!r}; pass a Vidsieve processor."
        )
    tokenizer = getattr(given, "tokenizer", given)
    return VidsieveProcessor(Prompter.build(tokenizer, model.config, settings.chat_template), encoder)
