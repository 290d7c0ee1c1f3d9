"""What the layouts of benchmarks share: the questions that they give, and where their videos are looked for."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from vidsieve.framework.errors import path_fault
from vidsieve.harness.data.benchmarks.annotations import Entry


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """One question. `options` are empty for an open one; `video` may be missing."""

    entry: Entry
    id: str
    video: Path
    question: str
    answer: str
    options: tuple[str, ...] = ()
    kind: str = ""


@dataclass(eq=False)
class Reading:
    """What comes up while a folder is read: `faults` in words, and how many entries are `left_out` for which reason."""

    root: Path
    faults: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def video(self, entry: Entry, field_name: str, name: str, folders: Sequence[str]) -> Path:
        """Find a video in the first of `folders` that has it, else anywhere under the root by its name.

        A video that is nowhere is given where it belongs. One that is found in several places is noted as a fault.
        """
        places = [self.root / folder / name for folder in folders]
        if name and (fault := path_fault(name)) is not None:
            entry.fault(field_name, f"{name!r}: {fault}")
        if not name or path_fault(name) is not None:
            return places[0]
        there = next((place for place in places if place.exists()), None)
        if there is not None:
            return there
        found = [file for file in self._by_name[Path(name).name] if file.as_posix().endswith(f"/{name}")]
        if len(found) > 1:
            named = ", ".join(file.relative_to(self.root).as_posix() for file in found[:3])
            entry.fault(field_name, f"{name!r} is found more than once ({named}), and not where it belongs")
        return found[0] if found else places[0]

    @cached_property
    def _by_name(self) -> defaultdict[str, list[Path]]:
        from vidsieve.media.video import VIDEO_SUFFIXES

        files: defaultdict[str, list[Path]] = defaultdict(list)
        for file in sorted(self.root.rglob("*")):
            if file.suffix.lower() in VIDEO_SUFFIXES:
                files[file.name].append(file)
        return files


class Layout(ABC):
    """How one benchmark lies in a folder. `name` is the benchmark's, `looks_like` the files that tell it."""

    name: ClassVar[str]
    looks_like: ClassVar[str]

    @abstractmethod
    def annotations(self, root: Path) -> list[Path]:
        """List the annotation files of this benchmark in a folder; none where it holds another one."""

    @abstractmethod
    def questions(self, file: Path, reading: Reading) -> Iterator[Question]:
        """Read the questions of one annotation file; what is wrong goes into `reading`."""

    def notices(self, root: Path) -> list[str]:
        """Say what of the folder is not used."""
        return []
