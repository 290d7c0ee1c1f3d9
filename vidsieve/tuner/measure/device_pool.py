"""The labs of a search, one for each device, and who of them is free."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from vidsieve.tuner.measure.measurement import Measurement

T = TypeVar("T")


class DevicePool:
    """Runs work on labs: with one lab right here, with several on a thread each, which only waits for its device."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._labs = list(measurements)
        self._idle: SimpleQueue[Measurement] = SimpleQueue()
        for measurement in measurements:
            self._idle.put(measurement)
        self._threads = ThreadPoolExecutor(len(measurements), "device") if len(measurements) > 1 else None

    def __len__(self) -> int:
        return len(self._labs)

    @property
    def free(self) -> bool:
        """Whether a lab has nothing to do."""
        return not self._idle.empty()

    def submit(self, work: Callable[[Measurement], T]) -> "Future[T]":
        """Do `work` on a free lab. On a crew of one it is done when this returns, and what it raises is raised here."""
        measurement = self._idle.get()
        if self._threads is None:
            future: Future[T] = Future()
            try:
                future.set_result(work(measurement))
            finally:
                self._idle.put(measurement)
            return future
        return self._threads.submit(self._on_thread, work, measurement)

    def _on_thread(self, work: Callable[[Measurement], T], measurement: Measurement) -> T:
        try:
            return work(measurement)
        finally:
            self._idle.put(measurement)

    def dismiss(self) -> None:
        """Let the threads go; what they still wait for is given up."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
