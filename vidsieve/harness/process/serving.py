"""Serve one bench in the child process, one request at a time."""

import importlib
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from vidsieve.framework.errors import UsageError
from vidsieve.framework.registry import default
from vidsieve.framework.task import Example
from vidsieve.harness.process.failures import Failure
from vidsieve.harness.process.messages import STOP, Facts, Hello, PolicyReader, Reply, SentExample, Warned, pack, unpack
from vidsieve.tuner.measure.latency import collector_off
from vidsieve.tuner.protocol import Bench


def serve(connection: Connection) -> None:
    """Answer requests until the parent closes the pipe."""
    server = Server(connection)
    warnings.showwarning = server.note_warning
    try:
        while server.answer(connection.recv_bytes()):
            pass
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class Server:
    """Runs requests on the bench. Policies are read with this process's own registry, which the factory may fill."""

    bench: Bench

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._policies = PolicyReader(default())
        self._examples: dict[int, Example] = {}
        self._warned: list[Warned] = []
        self._notices_sent = 0

    def answer(self, payload: bytes) -> bool:
        """Run a request and reply, with the failure if it raised. False: this process has to end."""
        try:
            self._do(unpack(payload))
            return True
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            if os.environ.get("VIDSIEVE_DEBUG") == "1":
                traceback.print_exception(error)
            failure = Failure.of(error)
        self._reply("failure", failure)
        return failure.kind != "device"

    def _do(self, request: Any) -> None:
        if isinstance(request, Hello):
            self.open(request)
        elif request != STOP:  # a stop that comes here came too late
            verb, *arguments = request
            methods: dict[str, Callable[..., None]] = {
                "clip_shape": self.clip_shape,
                "timed": self.timed,
                "score": self.score,
            }
            methods[verb](*arguments)

    def open(self, hello: Hello) -> None:
        """Make the bench and send its facts."""
        try:
            options = unpack(hello.options)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"child process: {error}; define it in a module that can be imported.") from None
        module, _, function = hello.factory.partition(":")
        self.bench = getattr(importlib.import_module(module), function)(options)
        bench = self.bench
        facts = Facts(
            shape=bench.shape,
            offers=frozenset(bench.offers),
            clips=bench.clips,
            smaller=frozenset(bench.smaller),
            described={**bench.describe()},
            frames_taken=getattr(bench, "frames_taken", None),
            hooks=getattr(bench, "hooks", None),
        )
        self._reply("value", facts)

    def clip_shape(self, clip_index: int) -> None:
        """Answer as `Bench.clip_shape`."""
        self._reply("value", self.bench.clip_shape(clip_index))

    def timed(self, intervention: Any, clip_index: int, metric: Any) -> None:
        """Answer as `Bench.timed`, with the garbage collector off while the clock runs."""
        policy = self._policies.read(intervention)
        with collector_off():
            parts = dict(self.bench.timed(policy, clip_index, metric))
        self._reply("value", parts)

    def score(self, intervention: Any, items: Sequence[int | SentExample]) -> None:
        """Answer as `Bench.score`; outcomes are sent one by one, until the parent wants no more."""
        examples = [self._example(item) for item in items]
        for outcome in self.bench.score(self._policies.read(intervention), examples):
            if self._connection.poll(0):
                break
            self._reply("item", outcome)
        self._reply("end")

    def _example(self, item: int | SentExample) -> Example:
        if isinstance(item, int):
            return self._examples[item]
        if item.number is not None:
            self._examples[item.number] = item.example
        return item.example

    def _reply(self, kind: Any, content: Any = None) -> None:
        bench = getattr(self, "bench", None)
        notices, encoding = getattr(bench, "notices", ()), getattr(bench, "encoding", None)
        payload = pack(Reply(kind, content, tuple(self._warned), tuple(notices[self._notices_sent :]), encoding))
        self._warned.clear()
        self._notices_sent = len(notices)
        self._connection.send_bytes(payload)

    def note_warning(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any, **named: Any
    ) -> None:
        """Keep a warning for the next reply, as its nearest built-in kind."""
        known = next(kind for kind in category.__mro__ if kind.__module__ == "builtins")
        self._warned.append(Warned(str(message), known, filename, lineno))
