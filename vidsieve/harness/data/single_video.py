"""A task of one example, for `vidsieve run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vidsieve.framework.errors import DataError, MediaError, path_fault
from vidsieve.framework.task import Example, Split, Task


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
