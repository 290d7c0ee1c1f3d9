"""`FeatureStore`: encoded clips in memory, and on disk for later runs; it counts what need not be done again."""

import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vidsieve.framework.errors import UsageError, path_fault
from vidsieve.harness.data.clip_reader import FrameCache
from vidsieve.harness.encoding.clip_record import ClipRecord
from vidsieve.harness.encoding.content_keys import model_digest
from vidsieve.harness.encoding.tensor_folder import TensorFolder
from vidsieve.tuner.protocol import EncodingWork

if TYPE_CHECKING:
    from vidsieve.harness.model_loading import Loaded
    from vidsieve.harness.setup import Setup

MEMORY_BYTES = 2 << 30
OFF, MEMORY = "off", "memory"


class FeatureStore:
    """Records of one model by key. What is on disk stays there; memory holds what was used last.

    `identify` tells the model from others in the same folder, and is called at the first record: it may read all
    weights. Where it gives None, nothing goes to disk.
    """

    def __init__(
        self, identify: Callable[[], str | None], folder: TensorFolder | None = None, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._identify, self.folder = identify, folder
        self._memory = FrameCache(memory_bytes)
        self.work = EncodingWork()

    @classmethod
    def of(cls, setup: "Setup", loaded: "Loaded") -> "FeatureStore | None":
        """Open the store that a setup asks for; None where it wants none.

        A model that the caller brought keeps nothing on disk: hooks and patches that it may have are no part of a key.

        Raises:
            UsageError: the folder that was named cannot be one.
        """
        wanted = setup.feature_store
        if wanted == OFF:
            return None
        if wanted == MEMORY or loaded.adopted:
            return cls(lambda: None)
        folder = default_folder() if wanted is None else Path(wanted).expanduser()
        if wanted is not None:
            _check_folder(folder)
        return cls(partial(model_digest, loaded), TensorFolder(folder, int(setup.feature_store_gb * 1e9)))

    @cached_property
    def model_key(self) -> str:
        """Identifies the model."""
        key = self._identify()
        if key is None:
            self.folder = None
        return key or "the only one"

    def get(self, key: str, source: str) -> ClipRecord | None:
        """Return the record of a key; None if it is not here. `source` names its clip in messages."""
        record: ClipRecord | None = self._memory.get(key)
        if record is None and self.folder is not None and (read := self.folder.read(key)) is not None:
            record = _record(*read, source)
            if record is not None:
                self._memory.put(key, record, record.nbytes)
        return record

    def count_reuse(self, record: ClipRecord) -> None:
        """Note that a record stood in for reading and encoding its clip."""
        self.work += EncodingWork(saved_passes=1, saved_seconds=record.seconds)

    def put(self, key: str | None, record: ClipRecord, seconds: float) -> None:
        """Keep a record that was just made in `seconds`, in place of one with fewer signals. Without key: count it."""
        self.work += EncodingWork(passes=1, seconds=seconds)
        if key is None:
            return
        self._memory.drop(key)
        self._memory.put(key, record, record.nbytes)
        if self.folder is not None:
            self.folder.write(key, record.tensors(), record.notes())

    @property
    def fault(self) -> str | None:
        """Say in a sentence that nothing is written to disk any more, if that is so."""
        if self.folder is None or self.folder.fault is None:
            return None
        return f"feature store {self.folder.fault}; encoded videos are kept for this run only"


def _record(tensors: dict[str, Tensor], notes: dict[str, str], source: str) -> ClipRecord | None:
    """Put a record together; None for one of another format, or that lacks something."""
    try:
        return ClipRecord.read(tensors, notes, source)
    except (KeyError, TypeError, ValueError):
        return None


def default_folder() -> Path:
    """Return the folder in the user's cache; VIDSIEVE_CACHE names another cache."""
    named = os.environ.get("VIDSIEVE_CACHE")
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidsieve"
    return (Path(named) if named else users) / "features"


def _check_folder(folder: Path) -> None:
    """Refuse a place that cannot be a folder. Raises UsageError."""
    fault = path_fault(folder)
    if fault is None and folder.exists() and not folder.is_dir():
        fault = "is a file"
    if fault is not None:
        raise UsageError(
            f"`feature_store` {folder}: {fault}. Give a folder, or `{MEMORY}` to keep features for this run only, or "
            f"`{OFF}`."
        )
