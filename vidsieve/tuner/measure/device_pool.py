"""The labs of a search, one for each device, and who of them is free."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from vidsieve.tuner.measure.measurement import Lab

T = TypeVar("T")


class Crew:
    """Runs work on labs: with one lab right here, with several on a thread each, which only waits for its device."""

    def __init__(self, labs: Sequence[Lab]) -> None:
        self._labs = list(labs)
        self._idle: SimpleQueue[Lab] = SimpleQueue()
        for lab in labs:
            self._idle.put(lab)
        self._threads = ThreadPoolExecutor(len(labs), "device") if len(labs) > 1 else None

    def __len__(self) -> int:
        return len(self._labs)

    @property
    def free(self) -> bool:
        """Whether a lab has nothing to do."""
        return not self._idle.empty()

    def submit(self, work: Callable[[Lab], T]) -> "Future[T]":
        """Do `work` on a free lab. On a crew of one it is done when this returns, and what it raises is raised here."""
        lab = self._idle.get()
        if self._threads is None:
            future: Future[T] = Future()
            try:
                future.set_result(work(lab))
            finally:
                self._idle.put(lab)
            return future
        return self._threads.submit(self._on_thread, work, lab)

    def _on_thread(self, work: Callable[[Lab], T], lab: Lab) -> T:
        try:
            return work(lab)
        finally:
            self._idle.put(lab)

    def dismiss(self) -> None:
        """Let the threads go; what they still wait for is given up."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
