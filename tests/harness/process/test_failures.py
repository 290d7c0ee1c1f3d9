"""What a child raised, as it arrives."""

import pickle

import pytest
import torch

from vidsieve.framework.errors import DataError, StageError, TuneError, UsageError
from vidsieve.harness.process.failures import Failure


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (caused(StageError("a stage raised"), torch.OutOfMemoryError("x")), "memory"),
        (RuntimeError("CUDA error: device-side assert triggered"), "device"),
        (caused(StageError("a stage raised"), RuntimeError("CUDA error: unspecified launch failure")), "device"),
        (RuntimeError("shapes do not fit"), "error"),
        (DataError("told: out of memory is a word in a file name"), "error"),
    ],
)
def test_the_kind_is_seen_through_to_the_cause(error: Exception, kind: str) -> None:
    assert Failure.of(error).kind == kind


@pytest.mark.parametrize(
    "error",
    [
        UsageError("a\nb"),
        KeyError("key"),
        OSError(28, "No space left on device", "/x"),
        ValueError(),
        ValueError(1, "a"),
    ],
)
def test_it_comes_back_as_it_was(error: Exception) -> None:
    back = pickle.loads(pickle.dumps(Failure.of(error))).error()
    assert type(back) is type(error) and str(back) == str(error) and back.args == error.args


def test_what_cannot_travel_arrives_in_words() -> None:
    class Local(Exception):
        pass

    failure = Failure.of(Local("why\nmore"))
    assert type(failure.error()) is TuneError
    assert failure.reason == "TuneError: Local: why"
    assert Failure.of(Local()).reason == "TuneError: Local"


def test_it_lets_go_of_what_the_frames_held() -> None:
    import weakref

    class Big:
        pass

    def raises() -> None:
        big = Big()
        held.append(weakref.ref(big))
        try:
            raise RuntimeError("inner")
        except RuntimeError as inner:
            raise StageError("outer") from inner

    held: list[weakref.ref[Big]] = []
    try:
        raises()
    except StageError as error:
        kept: Exception = error
    Failure.of(kept)
    assert held[0]() is None
