"""A local folder of a published benchmark as a task; which one it is, its files tell."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from vidsieve.framework.errors import DataError, path_fault
from vidsieve.framework.task import Example, Split
from vidsieve.harness.data.benchmarks.layout import Layout, Question, Reading
from vidsieve.harness.data.benchmarks.longvideobench import LongVideoBench
from vidsieve.harness.data.benchmarks.mlvu import MLVU
from vidsieve.harness.data.benchmarks.mvbench import MVBench
from vidsieve.harness.data.benchmarks.videomme import VideoMME
from vidsieve.harness.data.user_data import refuse, split_examples

LAYOUTS: tuple[Layout, ...] = (MVBench(), VideoMME(), MLVU(), LongVideoBench())
TWICE = "have an option twice, so that no answer can be told right"


class BenchmarkFolder:
    """The questions of MVBench, Video-MME, MLVU or LongVideoBench, as their releases lie on a disk.

    `notices` say what is not used of it. With `missing_ok` a missing video is no fault yet: opening it raises.

    Raises:
        DataError: a folder of no known layout, faults in its files, all at once, or videos that are missing.
    """

    metric: Literal["accuracy", "agreement"] = "accuracy"

    def __init__(self, folder: str | Path, *, missing_ok: bool = False) -> None:
        if (fault := path_fault(folder)) is not None:
            raise DataError(f"`data` {str(folder)!r}: {fault}.")
        root = Path(folder).expanduser().resolve()
        layout, files = _layout_of(root, folder)
        reading = Reading(root)
        found = [question for file in files for question in layout.questions(file, reading)]
        refuse([*reading.faults, *_repeats(found)])
        kept = [one for one in found if len(set(one.options)) == len(one.options)]
        reading.left_out[TWICE] += len(found) - len(kept)
        self.name = layout.name
        self.all = tuple(_example(one, root) for one in kept)
        self.notices = [*layout.notices(root), *_told(layout, reading, kept)]
        self._sha256 = _hash(files)
        if not self.all:
            raise DataError(f"`data` {folder}: {layout.name} lies there, with no question that can be asked.")
        if not missing_ok:
            _refuse_missing(self.all, folder)

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """Return the first `count` examples of a split; fewer if there are fewer."""
        return split_examples(self.all, split, seed)[:count]

    def describe(self) -> dict[str, str]:
        """Describe for provenance: the benchmark, the hash of its annotation files, sizes; no path."""
        return {
            "name": self.name,
            "source": "a benchmark's folder",
            "sha256": self._sha256,
            "examples": str(len(self.all)),
            "videos": str(len({example.group for example in self.all})),
        }


def _layout_of(root: Path, folder: str | Path) -> tuple[Layout, list[Path]]:
    """Find the one layout that a folder has, and its annotation files."""
    fitting = [(layout, files) for layout in LAYOUTS if (files := layout.annotations(root))]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        named = " and ".join(layout.name for layout, _ in fitting)
        raise DataError(f"`data` {folder}: holds files of {named}; give a folder that holds one of them.")
    known = "; ".join(f"{layout.name}: {layout.looks_like}" for layout in LAYOUTS)
    raise DataError(f"`data` {folder}: a folder of no known layout. Known are {known}. Or give a file of JSON lines.")


def _repeats(questions: Sequence[Question]) -> Iterator[str]:
    """Say which ids stand more than once."""
    first: dict[str, str] = {}
    for one in questions:
        where = first.setdefault(one.id, one.entry.where)
        if one.id and where != one.entry.where:
            yield f"{one.entry.where}: the id {one.id!r} stands in {where} already; ids must be unique."


def _example(one: Question, root: Path) -> Example:
    return Example(
        id=one.id,
        group=os.path.relpath(one.video, root),
        question=one.question,
        options=one.options or None,
        answer=one.answer,
        kind=one.kind,
        video=one.video,
    )


def _told(layout: Layout, reading: Reading, kept: Sequence[Question]) -> list[str]:
    """Say what is left out, and how open questions are judged."""
    told = [
        f"{layout.name}: left out are {count} questions that {why}." for why, count in reading.left_out.items() if count
    ]
    kinds = Counter(one.kind for one in kept if not one.options)
    if kinds:
        named = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        told.append(
            f"{layout.name}: {named} are open questions; an answer counts as right only when it equals the label, so "
            "long ones hardly ever do."
        )
    return told


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}:".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _refuse_missing(examples: Sequence[Example], folder: str | Path) -> None:
    """Refuse videos that are not there, in one sentence."""
    videos = {example.group: example.video for example in examples}
    missing = [group for group, video in videos.items() if video is None or not video.is_file()]
    if missing:
        raise DataError(
            f"`data` {folder}: {len(missing)} of {len(videos)} videos are missing (the first: {missing[0]}); unpack "
            "them there, or give `skip_bad` to go on without them."
        )
