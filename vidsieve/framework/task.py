"""The protocol between who provides questions about videos and who measures with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

Split = Literal["search", "rerank", "heldout"]
SPLITS: tuple[Split, ...] = ("search", "rerank", "heldout")


@dataclass(frozen=True, eq=False, kw_only=True)
class Example:
    """One question about one video.

    `group` names the video: examples of one group stay in one split and are resampled together. The pixels come from
    `video` (a file) or `frames` (RGB, 0 to 255) with `fps`. `answer` is None for data without labels; `options` is
    None for open questions. `kind` names the type of question, for tables.
    """

    id: str
    group: str
    question: str
    options: tuple[str, ...] | None = None
    answer: str | None = None
    kind: str = ""
    video: Path | None = None
    frames: UInt8[Tensor, "frames 3 height width"] | None = None
    fps: float | None = None


@runtime_checkable
class Task(Protocol):
    """Where examples come from. `metric` is "accuracy" with labels and "agreement" without."""

    name: str
    metric: Literal["accuracy", "agreement"]

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """The first `count` examples of a split. No video is in two splits."""
        ...

    def describe(self) -> dict[str, str]:
        """What goes into provenance: name, content hash, sizes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a model did with one example under one policy.

    `correct` is 1.0 or 0.0 (or agreement with the uncompressed model); `p_gold` is the probability of the gold
    answer among the options, or None where it is not defined; `retention_ratio` is what was attained.
    """

    example_id: str
    group: str
    correct: float
    prediction: str
    p_gold: float | None = None
    retention_ratio: float | None = None
    kind: str = ""
