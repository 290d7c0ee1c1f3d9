"""One policy that fails must cost one trial: telling failures in a line, and letting go of memory."""

import gc
import sys

from vidsieve.framework.errors import TuneError


class BenchLostError(TuneError):
    """Nothing can be evaluated any more: the next trial would fail as well, whatever its policy."""


def excuse(error: Exception) -> str:
    """The reason why one policy is passed over, once its memory is let go; what loses the bench is raised again."""
    if isinstance(error, BenchLostError):
        raise error
    release_memory(error)
    return reason_of(error)


def reason_of(error: BaseException) -> str:
    """The error as one line: its kind and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def release_memory(error: BaseException) -> None:
    """Drop the frames an error holds, and on a GPU the cached blocks, so that the next trial has room."""
    error.__traceback__ = None
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
