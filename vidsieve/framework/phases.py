"""Who is told when a stretch of a request's work begins and ends: timers, and whoever counts memory or operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class PhaseListener(Protocol):
    """Told of each stretch of work as it begins and ends, by the `Stopwatch` that measures it; they may nest."""

    def begin(self, watch: Any) -> None:
        """Called before the clock of `watch` starts."""
        ...

    def end(self, watch: Any) -> None:
        """Called after the clock of `watch` has stopped."""
        ...


_listener: ContextVar[PhaseListener | None] = ContextVar("phase_listener", default=None)


@contextmanager
def listening(listener: PhaseListener) -> Iterator[None]:
    """Tell `listener` of the stretches of work that this thread does while open."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def current_listener() -> PhaseListener | None:
    """The listener of this thread, or None."""
    return _listener.get()
