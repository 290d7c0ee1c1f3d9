"""Classify failures in a search: which cost one policy, which end the search, and how both read in one line."""

import gc
import sys

from vidsieve.framework.errors import DataError, MediaError, TuneError, VidsieveError

POLICY_FAULTS = (VidsieveError, RuntimeError, ValueError, MemoryError)
"""What running a policy may raise: the library's errors (a stage that raises is one), those of torch about devices,
memory and shapes, and a model that refuses its inputs. Anything else is a programming error and ends the search."""


class BenchLostError(TuneError):
    """Nothing can be evaluated any more: the next trial would fail as well, whatever its policy."""


class StudyFailedError(TuneError):
    """The storage of the study failed: nothing that is found any more would be kept."""


def fault_reason(error: Exception) -> str:
    """Release the memory of a failed policy and return the reason for passing it over.

    Raises again what is no fault of the policy: a lost bench, a study that fails, a video or data that cannot be read.
    """
    if isinstance(error, BenchLostError | StudyFailedError | MediaError | DataError):
        raise error
    release_memory(error)
    return reason_of(error)


def reason_of(error: BaseException) -> str:
    """Write the error as one line: its kind and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def release_memory(error: BaseException) -> None:
    """Drop the frames an error holds, and on a GPU the cached blocks, so that the next trial has room."""
    error.__traceback__ = None
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
