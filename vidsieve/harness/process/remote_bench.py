"""`RemoteBench`: a bench in a child process, for the search the same as one in its own."""

import os
import pickle
import threading
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from vidsieve.framework.errors import UsageError
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Example, Outcome
from vidsieve.harness.process.child import Child
from vidsieve.harness.process.failures import Failure, OutOfMemory, WorkerCannotStart, WorkerDied, WorkerError
from vidsieve.harness.process.messages import STOP, Facts, Hello, Reply, SentExamples, pack, to_document
from vidsieve.tuner.protocol import EncodingWork, Intervention, Metric

MOST_STARTS = 3
T = TypeVar("T")


class _Fact(Generic[T]):
    """An attribute of the bench in the child; reading it starts the child."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, bench: "RemoteBench | None", owner: type) -> T:
        if bench is None:
            raise AttributeError(self._name)
        value: T = getattr(bench.facts(), self._name)
        return value

    def __set__(self, bench: "RemoteBench", value: T) -> None:
        raise AttributeError(f"{self._name} is the child's")


class RemoteBench:
    """Implements the tuner's `Bench` over one child process, which starts at the first question, or by `start`.

    `factory` is "package.module:function"; the child calls it with `options` (which must pickle) and serves the bench
    it returns. Policies go over as documents and are read with the child's `vidsieve.framework.registry.default()`,
    where the factory puts plugin files. Paths are relative to the working folder of the moment this was made.

    Every call may raise what the bench raises, and:
        WorkerDied: the child ended; the next call starts a fresh one.
        OutOfMemory: memory ran out, then once more in a fresh child.
        WorkerCannotStart: three starts in a row ended in a death, or a fresh child is another bench.

    `notices` collects what the child's bench notices, and `encoding` sums up its work, over all children.

    Not for several threads at once, but `close` may come from any thread.
    """

    shape = _Fact[VideoShape]()
    offers = _Fact[frozenset[str]]()
    clips = _Fact[int]()
    smaller = _Fact[frozenset[str]]()
    frames_taken = _Fact[tuple[int, int]]()
    hooks = _Fact["frozenset[str] | None"]()

    def __init__(self, factory: str, options: Any, *, name: str = "") -> None:
        """Raises UsageError for options that cannot travel to another process."""
        try:
            self._hello = Hello(factory, pack(options))
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise UsageError(
                f"child process: {type(options).__name__} cannot be handed over: {error}. Define its classes and "
                "functions in a module that can be imported."
            ) from None
        self.name, self._folder = name, os.getcwd()
        self.starts = 0
        self._child: Child | None = None
        self._facts: Facts | None = None
        self._ready = self._closed = False
        self._stream: object | None = None
        self._shapes: dict[int, Hashable] = {}
        self._sent = SentExamples()
        self._warned: dict[Any, Any] = {}
        self.notices: list[str] = []
        self._encoding: dict[int, EncodingWork] = {}  # by child
        self._lock = threading.RLock()

    def __enter__(self) -> "RemoteBench":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._child.process.pid if self._child is not None else None

    def launch(self) -> None:
        """Start the child if there is none, without waiting until it is ready: several can start side by side."""
        with self._lock:
            if self._closed:
                raise WorkerError(f"{self._where}: is closed.")
            if self._child is None:
                self._child, self._ready = Child(self._folder), False
                self.starts += 1
                self._sent.clear()

    def start(self) -> None:
        """Wait until a child is ready. Raises as the factory does, and WorkerCannotStart."""
        with self._lock:
            deaths = 0
            while not self._ready:
                self.launch()
                try:
                    self._exchange_greetings()
                except WorkerDied as death:
                    deaths += 1
                    if deaths == MOST_STARTS:
                        raise WorkerCannotStart(f"{death} That was at start, {deaths} times in a row.") from None

    def _exchange_greetings(self) -> None:
        self._send(self._hello)
        reply = self._receive()
        if reply.kind == "failure":
            self._drop()
            raise reply.content.error()
        facts: Facts = reply.content
        if self._facts is not None and facts != self._facts:
            self._drop()
            names = [name for name, value in vars(facts).items() if value != getattr(self._facts, name)]
            raise WorkerCannotStart(f"{self._where}: came back as another bench (other {', '.join(names)}).")
        self._facts, self._ready = facts, True
        self._pass_on(reply)

    @property
    def encoding(self) -> EncodingWork | None:
        """The clips encoded and not encoded for scoring so far; None where each is encoded every time."""
        return sum(self._encoding.values(), EncodingWork()) if self._encoding else None

    def close(self) -> None:
        """End the child for good. A call that another thread is waiting on raises WorkerError."""
        self._closed = True
        child = self._child
        if child is not None:
            child.process.kill()
        with self._lock:
            self._drop()

    def renew(self) -> bool:
        """End the child and start a fresh one."""
        with self._lock:
            self._drop()
            self.start()
        return True

    def facts(self) -> Facts:
        """Return the facts of the bench in the child."""
        if self._facts is None:
            self.start()
        assert self._facts is not None
        return self._facts

    def describe(self) -> Mapping[str, str]:
        """Describe the bench as it describes itself in the child."""
        return dict(self.facts().described)

    def clip_shape(self, clip_index: int) -> Hashable:
        """Return the clip's token shape with the child's number: in a fresh child every shape has to warm up again."""
        self.start()
        if clip_index not in self._shapes:
            self._shapes[clip_index] = self._ask("clip_shape", clip_index)
        return self.starts, self._shapes[clip_index]

    def timed(self, policy: Intervention | None, clip_index: int, metric: Metric) -> Mapping[str, float]:
        """Time one request in the child."""
        parts: dict[str, float] = self._ask("timed", to_document(policy), clip_index, metric)
        return parts

    def score(self, policy: Intervention | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Yield outcomes as the child finds them. If the caller wants no more, the child stops at the next one."""
        written, done, again = to_document(policy), 0, False
        while True:
            with self._lock:
                self._settle()
                items = self._sent.items(examples[done:])
                self._send(("score", written, items))
                stream = self._stream = object()
            try:
                while (reply := self._next(stream)).kind == "item":
                    done += 1
                    yield reply.content
            finally:
                self._abandon(stream)
            if reply.kind == "end":
                return
            self._raise_unless_first(reply.content, again)
            again = True

    def _ask(self, *request: Any) -> Any:
        """Send one request and return its answer; where memory ran out, once more in a fresh child."""
        with self._lock:
            for again in (False, True):
                self._settle()
                self._send(request)
                reply = self._receive()
                self._pass_on(reply)
                if reply.kind == "value":
                    return reply.content
                self._raise_unless_first(reply.content, again)
        raise AssertionError("unreachable")

    def _raise_unless_first(self, failure: Failure, again: bool) -> None:
        """Raise what the child raised, unless memory ran out for the first time: then a fresh child is due."""
        self._sent.clear()  # how far the child got with the examples is unknown
        if failure.kind == "device" or (failure.kind == "memory" and not again):
            self._drop()
        if failure.kind != "memory":
            raise failure.error()
        if again:
            raise OutOfMemory(f"{self._where}: out of memory, in a fresh process too: {failure.reason}")

    def _next(self, stream: object) -> Reply:
        """Receive the next reply of a stream of outcomes."""
        with self._lock:
            if self._stream is not stream:
                raise WorkerError(f"{self._where}: these outcomes ended when something else was asked.")
            reply = self._receive()
            if reply.kind != "item":
                self._stream = None
            self._pass_on(reply)
            return reply

    def _abandon(self, stream: object) -> None:
        """Ask for no more of a stream that has not ended; what is under way is passed over at the next request."""
        if self._stream is not stream:
            return  # nothing to wait for, should this come from the garbage collector of another thread
        with self._lock:
            if self._stream is stream and self._child is not None:
                self._send(STOP, quietly=True)

    def _settle(self) -> None:
        """Return a child that is ready for a request, with no outcomes left in the pipe."""
        if self._stream is not None and self._child is not None:
            self._send(STOP, quietly=True)
            while self._stream is not None and self._child is not None:
                try:
                    self._next(self._stream)
                except WorkerDied:
                    break
        self._stream = None
        self.start()

    def _send(self, message: Any, *, quietly: bool = False) -> None:
        """Send, or say why the child is gone; `quietly` leaves that to the next who listens."""
        assert self._child is not None
        try:
            self._child.send(message)
        except OSError:
            if not quietly:
                raise self._death() from None
        except BaseException:
            self._drop()  # half a message may be in the pipe
            raise

    def _receive(self) -> Reply:
        """Receive the next reply."""
        assert self._child is not None
        try:
            reply: Reply = self._child.receive()
        except (EOFError, OSError):
            raise self._death() from None
        except BaseException:
            self._drop()
            raise
        return reply

    def _pass_on(self, reply: Reply) -> None:
        """Keep the child's notices, and issue its warnings as if they had come up in this process."""
        # a fresh child notices the same things again
        self.notices += [notice for notice in reply.notices if notice not in self.notices]
        if reply.encoding is not None:
            self._encoding[self.starts] = reply.encoding
        for warned in reply.warnings:
            warnings.warn_explicit(warned.text, warned.category, warned.file, warned.line, registry=self._warned)

    def _death(self) -> WorkerError:
        """Drop a child that ended; the error says how it ended."""
        assert self._child is not None
        child, closed = self._child, self._closed
        reason = child.died_of()
        self._drop()
        return WorkerError(f"{self._where}: is closed.") if closed else WorkerDied(f"{self._where}: {reason}.")

    def _drop(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        self._ready, self._stream = False, None
        if child is not None:
            child.end()

    @property
    def _where(self) -> str:
        return f"child process {self.name}".rstrip()
