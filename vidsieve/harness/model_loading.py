"""Load a checkpoint, or take the caller's model, onto a device; restore the process settings that this changes."""

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import ModelError, UsageError
from vidsieve.harness.model_choice import Choice, fetched
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vidsieve.framework.registry import Registry
    from vidsieve.media.processor import Processor

EDGE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class Loaded:
    """A model ready to answer. `choice` says where it came from, `threads` on how many it computes (None: torch's).

    `adopted`: the caller loaded it, and may have changed it since.
    """

    model: "PreTrainedModel"
    processor: "Processor"
    adapter: Any
    choice: Choice
    threads: int | None = None
    adopted: bool = False

    @property
    def is_bundled(self) -> bool:
        """Whether it is one of the tiny models that come with the package."""
        return self.choice.bundled is not None


def load(choice: Choice, setup: Setup, registry: "Registry") -> Loaded:
    """Load what was chosen onto its device.

    Raises:
        ModelError: the checkpoint cannot be had or read, its class has no adapter, or the family is another.
        UsageError: a device or attention kernel that is not there.
    """
    choice = fetched(choice)
    assert choice.folder is not None
    adapter, class_name = _adapter(choice, registry)
    import transformers

    device = choose_device(setup.device)
    # a bundled model is so small that handing work to other threads costs more than it saves, and many times more
    # on a busy machine
    threads = 1 if setup.threads is None and choice.bundled is not None else setup.threads
    options = {"dtype": _dtype(setup.dtype, device), "attn_implementation": setup.attn, "local_files_only": True}
    from vidsieve.media import load_processor

    with quiet_transformers():
        model = _from_pretrained(getattr(transformers, class_name), choice, options)
        processor = load_processor(choice.folder, model.config, max_pixels=setup.max_pixels)
    model = model.to(device).eval()
    return Loaded(model=model, processor=processor, adapter=adapter, choice=choice, threads=threads)


def processor_of(choice: Choice, setup: Setup) -> "Processor":
    """Load the processor of a checkpoint whose files are on this machine, without its weights."""
    from transformers import AutoConfig

    from vidsieve.media import load_processor

    assert choice.folder is not None
    with quiet_transformers():
        config = AutoConfig.from_pretrained(choice.folder)
        return load_processor(choice.folder, config, max_pixels=setup.max_pixels)


def _from_pretrained(model_class: Any, choice: Choice, options: dict[str, Any]) -> Any:
    """Load the model and refuse missing weights, which would silently be random ones."""
    import torch

    try:
        model, found = model_class.from_pretrained(choice.folder, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever transformers or safetensors make of a damaged checkpoint
        raise ModelError(f"checkpoint {choice.name}: cannot be loaded: {_first_line(error)}") from error
    wrong = sorted(found["missing_keys"]) + [str(item) for item in found.get("mismatched_keys", ())]
    if wrong:
        raise ModelError(
            f"checkpoint {choice.name}: {len(wrong)} weights are missing or misshapen, such as {wrong[0]}."
        )
    return model


def _adapter(choice: Choice, registry: "Registry") -> tuple[Any, str]:
    """Find the adapter for a checkpoint's class, read from its config alone, and the class's name."""
    assert choice.folder is not None
    try:
        config = json.loads((choice.folder / "config.json").read_text(encoding="utf-8"))
        name = (config.get("architectures") or [config.get("model_type", "unknown")])[0]
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"checkpoint {choice.name}: config.json cannot be read: {error}.") from None
    for adapter in registry.models.values():
        if name not in (*adapter.model_classes, *adapter.parts_of):
            continue
        if choice.family not in (None, adapter.family):
            raise ModelError(
                f"checkpoint {choice.name}: is a {name} of family {adapter.family}, but `model` is {choice.given}. "
                f"Give `model` {adapter.family}."
            )
        return adapter, adapter.model_classes[0] if name in adapter.parts_of else name
    known = ", ".join(
        sorted(name for adapter in registry.models.values() for name in (*adapter.model_classes, *adapter.parts_of))
    )
    raise ModelError(f"checkpoint {choice.name}: no adapter for the model class {name}. Adapters exist for: {known}.")


def choose_device(name: str | None) -> Any:
    """Choose the torch device. Raises UsageError for one that is not there."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"`device`: no device named {name!r}; give cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"`device` {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use another, or cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"`device` {name}: only cpu and cuda are supported.")
    return device


def _dtype(name: str, device: Any) -> Any:
    """Choose float32 on a CPU and the checkpoint's own on a GPU, unless given."""
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, name)


@cache
def device_name(device: str) -> str:
    """Read the GPU's or the processor's own name."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def fingerprint(folder: Path) -> str:
    """Hash config and weights (sizes and both edges of each file), to say that two copies are the same."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}:".encode())
            digest.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            digest.update(stream.read(EDGE_BYTES))
    return f"sha256:{digest.hexdigest()[:16]}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


FIXED = ("model", "checkpoint", "device", "attn")


def adopt(model: Any, processor: Any, setup: Setup) -> Loaded:
    """Take over a loaded transformers model, which stays where it is; the caller puts it into eval mode.

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
    origin = str(getattr(model.config, "_name_or_path", "") or "")
    folder = Path(origin).resolve() if origin and Path(origin).is_dir() else None
    choice = Choice(
        given=adapter.family,
        kind="folder",
        name=folder.name if folder else origin or type(model).__name__,
        folder=folder,
        revision=getattr(model.config, "_commit_hash", None),
        family=adapter.family,
    )
    return Loaded(
        model=model,
        processor=_processor(processor, model, origin, setup),
        adapter=adapter,
        choice=choice,
        threads=setup.threads,
        adopted=True,
    )


def _processor(given: Any, model: Any, origin: str, setup: Setup) -> Any:
    """Return our processor as it is, transformers' wrapped, one named loaded; None: from where the model came from."""
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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers to errors and without progress bars while open."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def used_threads(count: int | None) -> Iterator[None]:
    """Compute on `count` CPU threads while open; None leaves the number as it is."""
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put the model in eval mode while open; at the end every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
