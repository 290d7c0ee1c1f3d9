"""Videos without labels: a folder of them (`videos` DIR), or one with a question."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vidsieve.framework.errors import DataError, MediaError, path_fault
from vidsieve.framework.task import Example, Split, Task
from vidsieve.harness.data.splits import split_examples


class VideoFolder:
    """A task that asks one question of every video in a folder and its subfolders.

    Raises MediaError for a folder without videos.
    """

    metric: Literal["accuracy", "agreement"] = "agreement"

    def __init__(self, folder: str | Path, question: str) -> None:
        from vidsieve.media import list_videos

        if (fault := path_fault(folder)) is not None:
            raise MediaError(f"`videos` {str(folder)!r}: {fault}.")
        root = Path(folder).expanduser().resolve()
        self.name = root.name
        self._question = question
        names = [(file.relative_to(root).as_posix(), file) for file in list_videos(root)]
        self.all = tuple(Example(id=name, group=name, question=question, video=file) for name, file in names)

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """The first `count` videos of a split; fewer if there are fewer."""
        return split_examples(self.all, split, seed)[:count]

    def describe(self) -> dict[str, str]:
        """What provenance keeps: names and sizes of the files as a hash, and the question; no path."""
        listing = [f"{e.id}:{_size(e.video)}" for e in self.all if e.video is not None]
        return {
            "name": self.name,
            "source": "videos without labels",
            "sha256": hashlib.sha256("\n".join(listing).encode()).hexdigest(),
            "videos": str(len(self.all)),
            "question": self._question,
        }


def _size(file: Path) -> int | None:
    """Bytes of a file; None where it cannot be asked."""
    try:
        return file.stat().st_size
    except OSError:
        return None


class OneVideo:
    """One question about one video; in every split, as nothing is chosen by it."""

    metric: Literal["accuracy", "agreement"] = "agreement"

    def __init__(self, name: str, example: Example) -> None:
        self.name, self.example = name, example

    @classmethod
    def of_file(cls, video: str, question: str) -> "OneVideo":
        """A user's own video. Raises MediaError for a name that is no file's; other faults come when it is read."""
        if (fault := path_fault(video)) is not None:
            raise MediaError(f"video {video!r}: {fault}.")
        file = Path(video).expanduser()
        return cls(file.name, Example(id=file.name, group=file.name, question=question, video=file))

    @classmethod
    def first_of(cls, task: Task) -> "OneVideo":
        """The first held-out example of a task. Raises DataError if it has none."""
        found = task.examples("heldout", 1)
        if not found:
            raise DataError(f"data {task.name!r}: holds no example; give a VIDEO and a QUESTION.")
        return cls(task.name, found[0])

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """The example."""
        return [self.example][:count]

    def describe(self) -> dict[str, str]:
        """Its name."""
        return {"name": self.name}
