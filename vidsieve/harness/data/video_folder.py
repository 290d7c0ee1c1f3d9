"""`videos` DIR: videos without labels; a policy is scored by its agreement with the uncompressed model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vidsieve.framework.errors import MediaError, path_fault
from vidsieve.framework.task import Example, Split
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
