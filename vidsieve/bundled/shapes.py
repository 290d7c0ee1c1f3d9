"""What each bundled model is built for: the size of its clips, its questions and words, its layers. No torch here."""

from dataclasses import dataclass
from typing import Final, Literal

from vidsieve.bundled import words

Family = Literal["qwen2-vl", "llava-onevision"]
CELL: Final = 16
"""Side in pixels of the image region that becomes one visual token."""
FRAMES_PER_GROUP: Final = 2
"""Frames that share a frame group: a temporal patch of Qwen2-VL; LLaVA-OneVision sees one of them."""


@dataclass(frozen=True)
class ModelShape:
    """The dimensions of one bundled model and of the clips it is trained on.

    side: height and width of a clip in pixels.  groups: frame groups in a clip.  layers: decoder layers.
    flashes: fewest and most events in a clip.  legs: straight lines that the disc moves along.
    mrope_section: rotary channels for time, height and width; None where positions have one axis.
    block: clips of the task that are drawn together.
    """

    name: str
    family: Family
    side: int
    groups: int
    layers: int
    flashes: tuple[int, int]
    legs: int
    kinds: tuple[str, ...]
    silhouettes: tuple[str, ...]
    vocabulary: tuple[str, ...]
    rope_theta: float
    mrope_section: tuple[int, int, int] | None
    block: int

    @property
    def cells(self) -> int:
        """Rows, and columns, of visual tokens in a frame group."""
        return self.side // CELL

    @property
    def places(self) -> int:
        """Visual tokens of a frame group."""
        return self.cells**2

    @property
    def frames(self) -> int:
        """Frames of a clip as drawn; a model of one frame a group is given half of them."""
        return self.groups * FRAMES_PER_GROUP

    def options(self, kind: str) -> tuple[str, ...]:
        """Every answer that a kind of question can have."""
        return words.options(kind, self.silhouettes)


def _tiny(name: str, family: Family, theta: float, section: tuple[int, int, int] | None) -> ModelShape:
    return ModelShape(
        name=name,
        family=family,
        side=96,
        groups=8,
        layers=4,
        flashes=(2, 3),
        legs=1,
        kinds=words.KINDS,
        silhouettes=words.SHAPES,
        vocabulary=words.VOCABULARY,
        rope_theta=theta,
        mrope_section=section,
        block=16,
    )


def _mini(name: str, family: Family, theta: float, section: tuple[int, int, int] | None) -> ModelShape:
    return ModelShape(
        name=name,
        family=family,
        side=128,
        groups=32,
        layers=12,
        flashes=(2, 4),
        legs=2,
        kinds=words.LONG_KINDS,
        silhouettes=words.LONG_SHAPES,
        vocabulary=words.LONG_VOCABULARY,
        rope_theta=theta,
        mrope_section=section,
        block=4,
    )


# A small rope_theta and many time channels: with the default theta the width section barely turns on so small a grid.
# A mini model has longer clips: its fast channels tell neighbouring frames apart, a few turn once in two clips and so
# order all moments, and the slowest hardly turn in a clip, so that words find what they name wherever it is.
QWEN2_VL_TINY: Final = _tiny("qwen2-vl-tiny", "qwen2-vl", 100.0, (8, 4, 4))
LLAVA_ONEVISION_TINY: Final = _tiny("llava-onevision-tiny", "llava-onevision", 1000.0, None)
QWEN2_VL_MINI: Final = _mini("qwen2-vl-mini", "qwen2-vl", 1e3, (12, 2, 2))
LLAVA_ONEVISION_MINI: Final = _mini("llava-onevision-mini", "llava-onevision", 1e5, None)
SHAPES: Final = (QWEN2_VL_TINY, LLAVA_ONEVISION_TINY, QWEN2_VL_MINI, LLAVA_ONEVISION_MINI)
TINY: Final = QWEN2_VL_TINY
"""Where only the clips matter: both tiny models are given the same ones."""


def shape_of(name: str) -> ModelShape:
    """The record of a model's name; KeyError where there is none."""
    return {shape.name: shape for shape in SHAPES}[name]
