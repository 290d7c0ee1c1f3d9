"""`TensorFolder`: named tensors in a folder of bounded size, one safetensors file a name, shared by processes."""

import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

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
