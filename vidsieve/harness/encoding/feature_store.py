"""`FeatureStore`: encoded clips in memory, and on disk for later runs; it counts what need not be done again.

On disk they are a `TensorFolder`: named tensors in a folder of bounded size, one safetensors file a name, shared by
processes.
"""

import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidsieve.framework.errors import UsageError, path_fault
from vidsieve.harness.data.clip_reader import FrameCache
from vidsieve.harness.encoding.clip_record import ClipRecord
from vidsieve.harness.encoding.content_keys import model_digest
from vidsieve.tuner.protocol import EncodingWork

NAME = re.compile(r"[0-9a-f]{40}\.vidsieve\.safetensors")
"""Files of ours; a folder may hold others, which are never touched."""
HALF_WRITTEN = ".half-written"
ABANDONED_S = 3600.0
KEY, CHECKSUM = "key", "crc32"


class TensorFolder:
    """Writes are whole or not at all, so any number of processes may share it; the last of two writers wins.

    What was used longest ago goes when there are more than `most_bytes`. `fault` says in words why nothing is written
    any more; what can be read is read all the same. Nothing here raises for what the disk does.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self._most_bytes = folder, most_bytes
        self.fault: str | None = None

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return the tensors and the notes kept under `key`; None if they are not there whole, and were not `key`'s."""
        file = self._file(key)
        try:
            payload = file.read_bytes()
            tensors, notes = _unpacked(payload)
        except OSError:
            return None
        except Exception:  # whatever json and safetensors make of a damaged file
            self._remove(file)
            return None
        if notes.pop(KEY, None) != key or notes.pop(CHECKSUM, None) != _checksum(tensors):
            self._remove(file)
            return None
        with suppress(OSError):
            os.utime(file)  # used now
        return tensors, notes

    def write(self, key: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        """Keep tensors and notes, in place of what was under `key`; more than the whole folder may hold is not kept."""
        if self.fault is not None or sum(tensor.nbytes for tensor in tensors.values()) > self._most_bytes:
            return
        from safetensors.torch import save

        payload = save(dict(tensors), {**notes, KEY: key, CHECKSUM: _checksum(tensors)})
        file = self._file(key)
        draft = file.with_name(f"{file.name}.{os.getpid()}.{time.monotonic_ns()}{HALF_WRITTEN}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(payload)
            draft.replace(file)
            self._make_room(keep=file)
        except OSError as error:
            self._remove(draft)
            self.fault = f"{self.folder}: cannot be written to ({error.strerror or type(error).__name__})"

    def _make_room(self, keep: Path) -> None:
        """Remove what was used longest ago until the rest fits, and what a process left half written."""
        found, total = list(self._entries()), 0
        for _, size, file in sorted(found, reverse=True):
            total += size
            if total > self._most_bytes and file != keep:
                self._remove(file)
                total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """List (last used, bytes, file) of ours."""
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # another process has removed it
                known = entry.stat()
                if NAME.fullmatch(entry.name):
                    yield known.st_mtime, known.st_size, Path(entry.path)
                elif entry.name.endswith(HALF_WRITTEN) and time.time() - known.st_mtime > ABANDONED_S:
                    self._remove(Path(entry.path))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key[:40]}.vidsieve.safetensors"

    def _remove(self, file: Path) -> None:
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _unpacked(payload: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file from memory, so that nothing that happens to it later can reach the tensors."""
    from safetensors.torch import load

    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    return load(payload), dict(header.get("__metadata__") or {})


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Sum up all bytes: safetensors itself would not see that some were changed."""
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total = zlib.crc32(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


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
