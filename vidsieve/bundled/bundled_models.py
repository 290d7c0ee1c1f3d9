"""Which models come with Vidsieve. No torch here: `vidsieve ls` reads this."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vidsieve.bundled.shapes import ModelShape, shape_of
from vidsieve.framework.errors import UnknownNameError

MODELS_FOLDER: Final = Path(__file__).parent / "models"
DEFAULT_RUNG: Final = "static"


@dataclass(frozen=True)
class BundledModel:
    """A small trained video model in this package.

    family: what `model` takes.  frame_count: frames a clip is sampled to, as in training.
    visual_tokens: of one clip, uncompressed.
    """

    name: str
    family: str
    summary: str
    frame_count: int
    visual_tokens: int

    @property
    def shape(self) -> ModelShape:
        """The dimensions of its clips and layers, its questions and words."""
        return shape_of(self.name)

    @property
    def folder(self) -> Path:
        """The checkpoint folder that `from_pretrained` takes."""
        return MODELS_FOLDER / self.name

    @property
    def card(self) -> Path:
        """What it can do, measured."""
        return self.folder / "card.md"


# the first one of a family is its default
MODELS: Final = (
    BundledModel(
        name="qwen2-vl-mini",
        family="qwen2-vl",
        summary="Qwen2-VL with 2.7 M parameters and 12 layers, on synthetic clips of 64 frames.",
        frame_count=64,
        visual_tokens=2048,
    ),
    BundledModel(
        name="llava-onevision-mini",
        family="llava-onevision",
        summary="LLaVA-OneVision with 2.6 M parameters and 12 layers, on synthetic clips of 32 frames.",
        frame_count=32,
        visual_tokens=2048,
    ),
    BundledModel(
        name="qwen2-vl-tiny",
        family="qwen2-vl",
        summary="Qwen2-VL with 1.1 M parameters and 4 layers, on synthetic clips of 16 frames; for tests.",
        frame_count=16,
        visual_tokens=288,
    ),
    BundledModel(
        name="llava-onevision-tiny",
        family="llava-onevision",
        summary="LLaVA-OneVision with 1.0 M parameters and 4 layers, on synthetic clips of 8 frames; for tests.",
        frame_count=8,
        visual_tokens=288,
    ),
)


def find(family: str) -> BundledModel | None:
    """Find the default bundled model of a family, or the one with that name; None where there is none."""
    return next((model for model in MODELS if family in (model.family, model.name)), None)


def get(name: str) -> BundledModel:
    """Find as `find` does; UnknownNameError where there is none."""
    found = find(name)
    if found is None:
        raise UnknownNameError("bundled", "bundled model", name, [model.name for model in MODELS])
    return found
