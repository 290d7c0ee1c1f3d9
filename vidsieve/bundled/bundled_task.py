"""The task of the bundled models: questions about synthetic clips, drawn anew from names and seeds."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from jaxtyping import UInt8
from torch import Tensor

from vidsieve.bundled.questions import facts, one_of_each
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import RUNGS, Rung, sample_scenes
from vidsieve.bundled.seeds import rng_of, seed_of
from vidsieve.bundled.shapes import TINY, ModelShape
from vidsieve.framework.errors import UnknownNameError, UsageError
from vidsieve.framework.task import SPLITS, Example

FPS: Final = 8.0
GENERATOR: Final = 1
"""Raised whenever the same names would give other pixels or questions."""

WriteVideo = Callable[[Path, UInt8[Tensor, "frames 3 height width"], float], object]


class BundledTask:
    """One question of each kind about each synthetic clip of a model's shape; see `scene` for the rungs.

    A clip of the tiny models has 16 frames of 96 x 96 pixels and nine questions, one of the mini models 64 frames of
    128 x 128 pixels and eleven. `frame_count` thins a clip evenly, as sampling the file by count does: all frames (the
    default) or half. The splits share no clip, and each seed draws clips of its own.
    """

    metric: Literal["accuracy", "agreement"] = "accuracy"

    def __init__(self, rung: str = "static", *, frame_count: int | None = None, shape: ModelShape = TINY) -> None:
        known = next((name for name in RUNGS if name == rung), None)
        if known is None:
            raise UnknownNameError("bundled task", "rung", rung, RUNGS)
        frame_count = shape.frames if frame_count is None else frame_count
        if frame_count not in (shape.frames, shape.frames // 2):
            raise UsageError(
                f"bundled task: frame_count must be {shape.frames} or {shape.frames // 2} (an event lasts two frames), "
                f"got {frame_count}"
            )
        self.rung: Rung = known
        self.shape = shape
        self.frame_count = frame_count
        self.name = f"bundled-{rung}"

    def examples(self, split: str, count: int, *, seed: int = 0) -> list[Example]:
        """Return the first `count` examples of a split. Examples of one clip share its pixels in memory."""
        if split not in SPLITS:
            raise UnknownNameError("bundled task", "split", split, SPLITS)
        if count < 0:
            raise UsageError(f"bundled task: count must not be negative, got {count}")
        chosen: list[Example] = []
        block = 0
        while len(chosen) < count:
            chosen += self._block(split, seed, block, clips=-(-(count - len(chosen)) // len(self.shape.kinds)))
            block += 1
        return chosen[:count]

    def describe(self) -> dict[str, str]:
        """Describe for provenance: with these the same clips can be drawn again."""
        return {
            "name": self.name,
            "generator": str(GENERATOR),
            "frames": str(self.frame_count),
            "kinds": ", ".join(self.shape.kinds),
        }

    def _block(self, split: str, seed: int, block: int, *, clips: int) -> Iterator[Example]:
        """Make the examples of at most `clips` clips of a block.

        Clips of a block are drawn together: a clip's pixels depend on its block's seed and its place in the block.
        """
        shape, rung = self.shape, self.rung
        size = () if shape.frames == TINY.frames else (shape.frames,)
        names = ("task", GENERATOR, *size, rung, split, seed, block)
        rng = rng_of(*names)
        scene = sample_scenes(shape, rung, shape.block, rng)
        pixels = render(scene, rng)[:, :: shape.frames // self.frame_count]
        choice = random.Random(seed_of(*names, "questions"))
        questions = [one_of_each(clip, choice, shape.kinds) for clip in facts(scene)]
        for place in range(min(clips, shape.block)):
            group = "-".join((*map(str, size), f"{rung}-{split}-{seed}-{block * shape.block + place:05d}"))
            frames = pixels[place].clone()
            for one in questions[place]:
                yield Example(
                    id=f"{group}-{one.kind}",
                    group=group,
                    question=one.question,
                    options=shape.options(one.kind),
                    answer=one.answer,
                    kind=one.kind,
                    frames=frames,
                    fps=FPS * self.frame_count / shape.frames,
                )


def write_dataset(
    task: BundledTask, split: str, count: int, folder: str | Path, *, write_video: WriteVideo, seed: int = 0
) -> list[Example]:
    """Write the first `count` examples as one mp4 a clip and `examples.jsonl`; the examples come back as files.

    `write_video(path, frames, fps)` encodes. The JSONL is the form that `data` takes; `video` is relative to it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    filed: list[Example] = []
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as lines:
        for example in task.examples(split, count, seed=seed):
            assert example.frames is not None
            assert example.fps is not None
            if example.group not in written:
                written[example.group] = folder / f"{example.group}.mp4"
                write_video(written[example.group], example.frames, example.fps)
            path = written[example.group]
            filed.append(replace(example, video=path, frames=None))
            lines.write(json.dumps(_line(example, path.name)) + "\n")
    return filed


def _line(example: Example, video: str) -> dict[str, object]:
    return {
        "id": example.id,
        "video": video,
        "question": example.question,
        "options": list(example.options or ()),
        "answer": example.answer,
        "kind": example.kind,
    }
