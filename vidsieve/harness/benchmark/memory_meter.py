"""Read how much memory is in use, and the most since the last look: of a GPU, or of this process as the system counts.

On Linux the high-water mark of resident memory can be set back (`/proc/self/clear_refs`); where that is forbidden, a
thread looks every two milliseconds. Elsewhere nothing is told.
"""

import contextlib
import ctypes
import threading
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SET_BACK = "5"
SAMPLED_S = 0.002


@runtime_checkable
class MemoryMeter(Protocol):
    """`how` says in words what is counted. Bytes."""

    how: str

    def held_bytes(self) -> int:
        """Read what is in use now."""
        ...

    def peak_bytes(self) -> int:
        """Read the most since `restart`."""
        ...

    def restart(self) -> None:
        """Begin a new peak at what is in use now."""
        ...

    def trim(self) -> None:
        """Give back what is free but kept, so that it does not hide what is asked for next."""
        ...

    def close(self) -> None:
        """Stop looking."""
        ...


class CudaMeter:
    """What torch has allocated on a GPU; blocks that it caches are not counted."""

    how = "allocated by torch on the GPU"

    def __init__(self, device: Any) -> None:
        import torch

        self._cuda, self._device = torch.cuda, device

    def held_bytes(self) -> int:
        return int(self._cuda.memory_allocated(self._device))

    def peak_bytes(self) -> int:
        return int(self._cuda.max_memory_allocated(self._device))

    def restart(self) -> None:
        self._cuda.reset_peak_memory_stats(self._device)

    def trim(self) -> None:
        self._cuda.empty_cache()

    def close(self) -> None:
        """Nothing looks on its own."""


class HighWaterMeter:
    """The system's own high-water mark of this process."""

    how = "resident memory of this process, the system's high-water mark"

    def held_bytes(self) -> int:
        return _status("VmRSS")

    def peak_bytes(self) -> int:
        return _status("VmHWM")

    def restart(self) -> None:
        CLEAR.write_text(SET_BACK)

    def trim(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def close(self) -> None:
        """Nothing looks on its own."""


class SampledMeter(HighWaterMeter):
    """Looks on its own, for where the mark cannot be set back."""

    how = "resident memory of this process, looked at every 2 ms"

    def __init__(self) -> None:
        self._most, self._stop = 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._stop.wait(SAMPLED_S):
            self._most = max(self._most, self.held_bytes())

    def peak_bytes(self) -> int:
        return max(self._most, self.held_bytes())

    def restart(self) -> None:
        self._most = self.held_bytes()

    def close(self) -> None:
        self._stop.set()


def open_meter(device: Any) -> MemoryMeter | None:
    """Choose the meter for a torch device; None where nothing can be read."""
    if device.type == "cuda":
        return CudaMeter(device)
    if not STATUS.exists():
        return None
    meter = HighWaterMeter()
    try:
        meter.restart()
    except OSError:
        return SampledMeter()
    return meter


def _status(name: str) -> int:
    """Read a line of the process's status, in bytes."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0
