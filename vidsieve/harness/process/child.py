"""`Child`: one worker process, as its parent starts it, exchanges messages with it and learns how it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection
from socket import socketpair
from typing import Any

from vidsieve.harness.process.messages import pack, unpack

MAIN = "vidsieve.harness.process.child_main"
ENDS_WITHIN_S = 10.0
TAIL_BYTES = 2000


class Child:
    """A fresh interpreter that runs `worker.main`. Not a fork (CUDA and threads do not survive one), not
    multiprocessing's spawn (which would run the user's script once more).

    It has a session of its own, so that Ctrl-C reaches only the parent; it ends when the parent ends. What it writes
    on standard output or error goes to the parent's standard error.
    """

    def __init__(self, folder: str) -> None:
        ours, theirs = socketpair()
        hold, lifeline = os.pipe()[::-1]
        tail, written = os.pipe()
        try:
            self.process = subprocess.Popen(
                # -P: a stray queue.py in the working folder must not stand in for the library's
                [sys.executable, "-u", "-P", "-m", MAIN, str(theirs.fileno()), str(lifeline)],
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(_search_path())},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            for descriptor in (hold, tail):
                os.close(descriptor)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
            os.close(written)
        self._connection = Connection(ours.detach())
        self._echo = Echo(tail)
        self._echo.start()
        self.end = weakref.finalize(self, _end, self.process, self._connection, hold, self._echo)

    def send(self, message: Any) -> None:
        """Send a message. Raises OSError if the child is gone."""
        self._connection.send_bytes(pack(message))

    def receive(self) -> Any:
        """Wait for a message. Raises EOFError or OSError if the child is gone."""
        return unpack(self._connection.recv_bytes())

    def died_of(self) -> str:
        """End the child if it has not, and say in words what ended it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDS_WITHIN_S)
        self.end()
        reason = _ending(self.process.returncode)
        last = self._echo.last_line
        return f"{reason}; it last wrote: {last}" if last else reason


def _search_path() -> list[str]:
    """List where this process finds modules, for the child to find the same ones."""
    return [path or os.getcwd() for path in sys.path]


def _end(process: "subprocess.Popen[bytes]", connection: Connection, hold: int, echo: "Echo") -> None:
    """Kill, wait (a device's memory is free only then), and close everything of ours."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ENDS_WITHIN_S)
    connection.close()
    os.close(hold)
    if threading.current_thread() is not echo:
        echo.join(1.0)


def _ending(code: int | None) -> str:
    """Write an exit code in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")


class Echo(threading.Thread):
    """Passes on what the child writes, and remembers the end of it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="worker's standard error", daemon=True)
        self._descriptor, self._tail = descriptor, b""

    @property
    def last_line(self) -> str:
        """The last line that is not blank, shortened."""
        self.join(1.0)
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines()]
        return next((line[:200] for line in reversed(lines) if line), "")

    def run(self) -> None:
        """Pass on output until the child, and every process that shares the pipe, has closed it."""
        with open(self._descriptor, "rb", buffering=0) as stream:
            while chunk := stream.read(4096):
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]
                # sys.stderr, not the file behind it: a progress display may have put itself in between
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    sys.stderr.write(chunk.decode(errors="replace"))
