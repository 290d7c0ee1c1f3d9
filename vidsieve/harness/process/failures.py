"""Send errors of a child process to its parent: the error itself, or its words.

TuneError
└── WorkerError           the child cannot be used
    ├── WorkerDied        it ended while it worked; the next call starts a fresh one
    ├── WorkerCannotStart it ends each time it starts, or comes back as another; ends the search
    └── OutOfMemory       there was not enough memory, in a fresh child either
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vidsieve.framework.errors import TuneError, VidsieveError
from vidsieve.harness.process.messages import pack, unpack
from vidsieve.tuner.trial_failure import BenchLostError, reason_of, release_memory


class WorkerError(TuneError):
    """A child process that cannot be used."""


class WorkerDied(WorkerError):
    """The child ended while it worked: its signal or exit code, and what it last wrote on standard error."""


class WorkerCannotStart(WorkerError, BenchLostError):
    """The child ended at every start, or a fresh one is not the same bench."""


class OutOfMemory(WorkerError):
    """Memory ran out, and once more in a fresh child."""


Kind = Literal["error", "memory", "device"]
MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
DEVICE_WORDS = ("CUDA error", "device-side assert")


@dataclass(frozen=True)
class Failure:
    """`kind` "memory": it ran out. "device": the process can no longer use its device and has to go."""

    kind: Kind
    name: str
    text: str
    payload: bytes | None

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Make of `error` what is raised in the parent; whatever the error refers to is released."""
        failure = cls(_kind(error), type(error).__name__, str(error), _packed(error))
        for each in _chain(error):
            each.__traceback__ = None
        release_memory(error)
        return failure

    @property
    def reason(self) -> str:
        """One line."""
        return reason_of(self.error())

    def error(self) -> Exception:
        """Make the error to raise; a TuneError `kind: message` where its class is not here."""
        try:
            error = _rebuilt(unpack(self.payload)) if self.payload is not None else None
        except Exception:  # a stranger's class may raise anything when it is put together again
            error = None
        return error or TuneError(f"{self.name}: {self.text}".removesuffix(": "))


def _packed(error: Exception) -> bytes | None:
    """Pack the error as bytes that were seen to come back as the same error."""
    # the default way calls __init__ with `args`, which for some of our classes holds only the finished message
    state = {name: value for name, value in vars(error).items() if not name.startswith("__")}
    parts: Any = (type(error), error.args, state) if isinstance(error, VidsieveError) else error
    try:
        payload = pack(parts)
        back = _rebuilt(unpack(payload))
    except Exception:  # again, anything
        return None
    return payload if type(back) is type(error) and str(back) == str(error) else None


def _rebuilt(parts: Any) -> Exception:
    if isinstance(parts, Exception):
        return parts
    kind, arguments, state = parts
    error: Exception = kind.__new__(kind, *arguments)
    vars(error).update(state)
    return error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """List the error, what it was raised from, and what was being handled."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and not any(each is other for other in seen):
            seen.append(each)
            yield each
            waiting += [each.__cause__, each.__context__]


def _kind(error: Exception) -> Kind:
    """Classify the error by itself and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        words = str(cause)
        if isinstance(cause, MemoryError | torch.OutOfMemoryError):
            return "memory"
        if isinstance(cause, RuntimeError) and any(word in words for word in MEMORY_WORDS):
            return "memory"
        if isinstance(cause, RuntimeError) and any(word in words for word in DEVICE_WORDS):
            return "device"
        cause = cause.__cause__
    return "error"
