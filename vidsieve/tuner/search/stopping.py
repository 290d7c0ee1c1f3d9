"""Ctrl-C in a search: the first lets the running trial finish, the second stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether the user asked to stop. `busy` is true while a trial runs, which a first Ctrl-C lets finish."""

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.asked, self.busy, self._told = False, False, told

    def hear(self, *_: Any) -> None:
        """A signal came. Raises KeyboardInterrupt where nothing runs that is worth finishing, or the second time."""
        if self.asked or not self.busy:
            raise KeyboardInterrupt
        self.asked = True
        self._told()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear Ctrl-C here, and SIGTERM, which stops at once.

        Elsewhere than in the main thread, or where someone else listens already, nothing changes.
        """
        with (
            _handler(signal.SIGINT, signal.default_int_handler, self.hear),
            _handler(signal.SIGTERM, signal.SIG_DFL, _stop_now),
        ):
            yield


def _stop_now(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handler(number: int, expected: Any, handler: Any) -> Iterator[None]:
    """`handler` in place of `expected`; nothing if another stands there, or outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is not expected:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, expected)
