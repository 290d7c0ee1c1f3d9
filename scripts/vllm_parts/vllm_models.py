"""The models that are asked: bundled ones, and random ones of families without."""

import json
import shutil
from pathlib import Path

from random_models import RANDOM_MODELS, save_random
from safetensors.torch import load_file, save_file

from vidsieve.bundled.bundled_models import get

CLIPS_OF = dict.fromkeys(RANDOM_MODELS, "qwen2-vl-mini")
"""Whose clips a random model is shown."""
COUNTED_BY_AXIS = ("qwen2-vl-mini", "qwen2.5-vl-random")
"""Where a prompt can end in a visual token with three positions. transformers 5 goes on from each of the three, vLLM
from the largest, as the released code did: there is nothing to compare."""


def family(model: str) -> str:
    """How its prompts are written."""
    return "qwen" if model.startswith("qwen") else model.partition("-")[0]


def architecture(model: str) -> str:
    """The class that transformers loads it with."""
    if model in RANDOM_MODELS:
        return type(RANDOM_MODELS[model].build()).__name__
    found: str = json.loads((get(model).folder / "config.json").read_text())["architectures"][0]
    return found


def checkpoint(model: str, into: Path) -> Path:
    """The folder of a bundled model, or a random one written to `into`."""
    if model not in RANDOM_MODELS:
        return get(model).folder
    save_random(model, into)
    return into


def servable(model: str, into: Path) -> Path:
    """The checkpoint as vLLM reads it.

    transformers 5 writes the names of a SigLIP tower without `vision_model`, which vLLM 0.32 expects, as older
    checkpoints have it; a copy gets those names.
    """
    folder = checkpoint(model, into)
    if not model.startswith("llava"):
        return folder
    shutil.copytree(folder, into)
    weights = load_file(into / "model.safetensors")
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()}
    save_file(renamed, into / "model.safetensors", {"format": "pt"})
    return into
