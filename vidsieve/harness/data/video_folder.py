"""`videos` DIR: videos without labels; a policy is scored by its agreement with the uncompressed model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vidsieve.framework.task import Example, Split
from vidsieve.harness.data.splits import split_examples


class VideoFolder:
    """A task that asks one question of every video in a folder. Raises MediaError for a folder without videos."""

    metric: Literal["accuracy", "agreement"] = "agreement"

    def __init__(self, folder: str | Path, question: str) -> None:
        from vidsieve.media import list_videos

        files = list_videos(Path(folder).expanduser())
        self.name = Path(folder).expanduser().resolve().name
        self._question = question
        self.all = tuple(Example(id=f.name, group=f.name, question=question, video=f.resolve()) for f in files)

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """The first `count` videos of a split; fewer if there are fewer."""
        return split_examples(self.all, split, seed)[:count]

    def describe(self) -> dict[str, str]:
        """What provenance keeps: names and sizes of the files as a hash, and the question; no path."""
        listing = [f"{e.id}:{e.video.stat().st_size}" for e in self.all if e.video is not None]
        return {
            "name": self.name,
            "source": "videos without labels",
            "sha256": hashlib.sha256("\n".join(listing).encode()).hexdigest(),
            "videos": str(len(self.all)),
            "question": self._question,
        }
