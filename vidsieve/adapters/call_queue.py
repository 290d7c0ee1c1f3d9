"""Calls on one model queue: a call puts hooks and rules on it, which a second call at the same time would meet."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, RLock, Thread, current_thread
from weakref import WeakKeyDictionary

from vidsieve.adapters.adapter import VideoModel


class CallQueue:
    """Gives the calls on one model their turn, one at a time, whatever thread they come from."""

    def __init__(self) -> None:
        self._turn = RLock()
        self._state = Condition(Lock())
        self._calls: dict[object, Thread] = {}
        self._running: Thread | None = None

    @property
    def inside(self) -> bool:
        """Whether this thread is within a call."""
        return self._running is current_thread()

    @contextmanager
    def turn(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait for the turn and have it while open; `check` refuses by raising, before the wait and after it."""
        call = object()
        try:
            with self._state:
                check()
                self._calls[call] = current_thread()
            with self._turn:
                check()
                outer, self._running = self._running, current_thread()
                try:
                    yield
                finally:
                    self._running = outer
        finally:
            with self._state:
                self._calls.pop(call, None)
                self._state.notify_all()

    def change(self, action: Callable[[], None], *, after_calls: bool = False) -> None:
        """Do `action` while no call can join the queue; `after_calls`, once those of other threads are done.

        Within a call there is no such wait, because it has the turn that the others wait for.
        """
        with self._state:
            try:
                if after_calls and not self.inside:
                    self._state.wait_for(lambda: all(one is current_thread() for one in self._calls.values()))
            finally:
                action()


_QUEUES: WeakKeyDictionary[VideoModel, CallQueue] = WeakKeyDictionary()
_MAKING = Lock()


def queue_of(model: VideoModel) -> CallQueue:
    """The queue of a model; it lives as long as the model."""
    with _MAKING:
        return _QUEUES.setdefault(model, CallQueue())
