"""From exceptions to exit codes."""

import subprocess
import sys
import warnings

import pytest
import typer

from vidsieve.cli.app import guarded
from vidsieve.framework.errors import DataError, TargetUnreachableError, UsageError


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DataError("data: broken."), 1, "error: data: broken."),
        (UsageError("--x: no."), 2, "error: --x: no."),
        (TargetUnreachableError("too low."), 3, "error: too low."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "out.yaml"), 1, "out.yaml: No space left on device"),
        (ZeroDivisionError("oops"), 1, "This is a bug"),
    ],
)
def test_every_failure_is_one_message_and_a_code(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIDSIEVE_DEBUG", raising=False)

    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        guarded(verb)()
    told = capsys.readouterr()
    assert caught.value.exit_code == code
    assert sentence in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


def test_the_traceback_is_there_for_those_who_ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDSIEVE_DEBUG", "1")

    def verb() -> None:
        raise DataError("data: broken.")

    with pytest.raises(typer.Exit):
        guarded(verb)()
    assert "Traceback" in capsys.readouterr().err


def test_warnings_for_people_are_lines_and_those_of_libraries_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        warnings.warn("old call", FutureWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        guarded(verb)()
    assert capsys.readouterr().err == "warning: mind the gap\n"


def test_a_reader_that_has_seen_enough_is_no_failure_to_tell() -> None:
    shown = subprocess.Popen(
        [sys.executable, "-m", "vidsieve.cli", "ls", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()
    assert shown.stderr.read() == b""
    shown.stderr.close()
    assert shown.wait() == 1
