"""The ends of a search before its last phase: Ctrl-C, SIGTERM and errors, each with the best policy so far."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vidsieve.framework.errors import DataError, MediaError, TuneError
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.trial_failure import reason_of


class Interrupted(TuneError):
    """A search stopped by the user. `result` is the best so far, unconfirmed, or None."""

    exit_code = 130

    def __init__(self, result: TuneResult | None) -> None:
        self.result = result
        found = "nothing was found yet" if result is None else f"the best so far is {result.policy.name}"
        super().__init__(f"search: interrupted; {found}.")


class SearchFailedError(TuneError):
    """A search that an error ended after it had found a policy: `result` is the best so far, the error is the cause.

    The exit code is that of the error.
    """

    def __init__(self, result: TuneResult, error: Exception) -> None:
        self.result = result
        self.exit_code = getattr(error, "exit_code", TuneError.exit_code)  # type: ignore[misc]
        what = str(error) if isinstance(error, TuneError | MediaError | DataError) else reason_of(error)
        way = "Run the same search again to go on"
        if isinstance(error, MediaError):
            way = f"Mend the file, or take it away and give `skip_bad`. {way}"
        super().__init__(
            f"search: ended by an error; the best so far is {result.policy.name}"
            f"{'' if result.confirmed else ', not confirmed'}. {what.rstrip('.')}. {way}."
        )


class Stop:
    """Whether the user asked to stop. `busy` is true while a trial runs, which a first Ctrl-C lets finish."""

    def __init__(self, notify: Callable[[], None] = lambda: None) -> None:
        self.asked, self.busy, self._notify = False, False, notify

    def on_signal(self, *_: Any) -> None:
        """Handle a signal: raise KeyboardInterrupt where no trial runs, or the second time."""
        if self.asked or not self.busy:
            raise KeyboardInterrupt
        self.asked = True
        self._notify()

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle Ctrl-C here, and SIGTERM, which stops at once.

        Elsewhere than in the main thread, or where someone else listens already, nothing changes.
        """
        with (
            _handler(signal.SIGINT, signal.default_int_handler, self.on_signal),
            _handler(signal.SIGTERM, signal.SIG_DFL, _stop_now),
        ):
            yield


def _stop_now(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handler(number: int, expected: Any, handler: Any) -> Iterator[None]:
    """Install `handler` in place of `expected`; do nothing where another is installed or outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is not expected:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, expected)
