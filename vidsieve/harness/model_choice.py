"""Resolve `model` and `checkpoint` on this machine. Neither torch nor transformers is imported here."""

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidsieve.bundled import bundled_models
from vidsieve.framework.errors import ModelError, UnknownNameError, UsageError, path_fault

if TYPE_CHECKING:
    from vidsieve.bundled.bundled_models import BundledModel
    from vidsieve.framework.registry import Registry

WANTED_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.ttf")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The checkpoint that stands for `given`, the name in `model`.

    `name` is for people and provenance: a hub id, a folder's name, a bundled model's name. `folder` holds the files,
    or is None while a named hub id has yet to be fetched. `note` says what was chosen when the user did not name it.
    """

    given: str
    kind: Literal["bundled", "folder", "cached", "hub", "random"]
    name: str
    folder: Path | None = None
    revision: str | None = None
    family: str | None = None
    bundled: "BundledModel | None" = None
    note: str = ""


def choose(model: str | None, checkpoint: str | None, registry: "Registry") -> Choice:
    """Resolve `model` with `checkpoint`.

    Raises:
        UsageError: no model, an unknown one (the message lists what there is), or a checkpoint without a family.
        ModelError: a folder that is not there or holds no model; a family without any checkpoint on this machine.
    """
    _refuse_addresses(model=model, checkpoint=checkpoint)
    families = {name: adapter for name, adapter in registry.models.items()}
    families |= {alias: adapter for adapter in registry.models.values() for alias in adapter.aliases}
    if model is None:
        raise UsageError(
            f"`model`: is missing. Give a family ({', '.join(sorted(registry.models))}), a hub id or a folder."
        )
    if model in families:
        family = families[model].family
        if checkpoint is not None:
            return _named(model, checkpoint, "`checkpoint`", family)
        return _default(model, families[model])
    if checkpoint is not None:
        raise UsageError(
            f"`checkpoint`: goes with a family, but `model` is {model!r}. Give `model` {checkpoint} alone, or a "
            f"family: {', '.join(sorted(registry.models))}."
        )
    bundled = bundled_models.find(model)
    if bundled is not None:
        return _bundled(model, bundled, "")
    if "/" in model or _is_folder(model):
        return _named(model, model, "`model`", None)
    names = {*registry.models, *(each.name for each in bundled_models.MODELS)}
    error = UnknownNameError("`model`", "model", model, names)
    raise UsageError(f"{error} A hub id (owner/name) or a folder works too.")


def _refuse_addresses(**named: str | None) -> None:
    """Refuse an address of a model page, giving its hub id as the way, and an empty name. Raises UsageError."""
    for field, name in named.items():
        if name is None or (fault := path_fault(name)) is None:
            continue
        page = re.match(r"https?:/+(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)", name)
        if page is not None:
            raise UsageError(f"`{field}` {name!r}: is the address of a model's page. Give its hub id, {page[1]}.")
        raise UsageError(f"`{field}` {name!r}: {fault}. Give a hub id (owner/name) or a folder.")


def _is_folder(text: str) -> bool:
    return text.startswith((".", "~", os.sep)) or Path(text).is_dir()


def _named(given: str, checkpoint: str, where: str, family: str | None) -> Choice:
    """Choose a checkpoint the user named: a folder, or a hub id (with @revision)."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{where} {checkpoint}: the folder has no config.json; name a folder made by save_pretrained."
            )
        return Choice(given=given, kind="folder", name=path.resolve().name, folder=path.resolve(), family=family)
    if checkpoint.startswith((".", "~", os.sep)) or checkpoint.count("/") != 1:
        raise ModelError(f"{where} {checkpoint}: no such folder, and no hub id (owner/name). Check the path.")
    name, _, revision = checkpoint.partition("@")
    return Choice(given=given, kind="hub", name=name, revision=revision or None, family=family)


def _default(given: str, adapter: Any) -> Choice:
    """Choose the checkpoint of a family given by name alone: the default one if it is here, else the bundled one."""
    here = cached_snapshot(adapter.default_checkpoint)
    if here is not None:
        note = f"model: {given} stands for {adapter.default_checkpoint}, found in the local cache."
        return Choice(
            given=given,
            kind="cached",
            name=adapter.default_checkpoint,
            folder=here,
            revision=here.name,
            family=adapter.family,
            note=note,
        )
    bundled = bundled_models.find(adapter.family)
    how = f"`checkpoint` {adapter.default_checkpoint}"
    if bundled is None:
        raise ModelError(
            f"`model` {given}: {adapter.default_checkpoint} is not in the local cache, and no bundled model stands in "
            f"for this family. Nothing is downloaded unasked: give {how} (which downloads it), or a folder."
        )
    return _bundled(
        given,
        bundled,
        f"model: {given} stands for the bundled {bundled.name}, a small model trained on synthetic clips, because "
        f"{adapter.default_checkpoint} is not in the local cache. For a real one: {how}",
    )


def _bundled(given: str, model: "BundledModel", note: str) -> Choice:
    if not (model.folder / "config.json").is_file():
        raise ModelError(
            f"`model` {given}: the bundled {model.name} is missing from this installation; install it again."
        )
    return Choice(
        given=given,
        kind="bundled",
        name=model.name,
        folder=model.folder,
        family=model.family,
        bundled=model,
        note=note,
    )


def cached_snapshot(hub_id: str) -> Path | None:
    """Return the local cache's folder of a hub repository if config and all weights are in it, without the network."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if has_weights(folder) else None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors weights, all shards of them."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / shard).is_file() for shard in shards)


def on_this_machine(adapter: Any) -> str:
    """Say what of a family can run without a download."""
    cached = cached_snapshot(adapter.default_checkpoint) is not None
    bundled = bundled_models.find(adapter.family)
    has_bundled = bundled is not None and has_weights(bundled.folder)
    there = [
        *(["default checkpoint"] if cached else []),
        *([f"bundled {bundled.name}"] if bundled and has_bundled else []),
    ]
    return ", ".join(there) or "nothing; name a checkpoint"


def fetched(choice: Choice) -> Choice:
    """Return `choice` with its files on this machine; only a hub id that the user named is downloaded.

    Raises:
        ModelError: it cannot be had (no network, no such repository, no access), or has no safetensors weights.
    """
    if choice.folder is not None:
        folder, revision = choice.folder, choice.revision
    else:
        folder = _download(choice)
        revision = folder.name
    if not has_weights(folder):
        raise ModelError(
            f"checkpoint {choice.name}: {folder} has no complete safetensors weights; is the copy unfinished?"
        )
    return replace(choice, folder=folder, revision=revision)


def _download(choice: Choice) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(choice.name, revision=choice.revision, allow_patterns=list(WANTED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"checkpoint {choice.name}: cannot be had ({type(error).__name__}: {first[:200]}). Check the name, the "
            "network and your access; no other model is taken in its place."
        ) from None
    return Path(folder)
