"""Benches for child processes: the fake one, with policies that do harm as their names say."""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tuner.fake_bench import FakeBench
from tuner.searching import quality

from vidsieve.framework.errors import DataError, ModelError, PolicyFileError, UnknownNameError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import default
from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.protocol import EncodingWork


@dataclass(frozen=True)
class Options:
    """`folder` is where the benches leave their marks."""

    folder: Path
    plugin: Path | None = None
    start: str = ""
    quality: Any = None


class Home(Exception):
    """An error whose class cannot be put together again from its arguments."""

    def __init__(self, where: str, *, what: str) -> None:
        super().__init__(f"{where}: {what}")


class Harmful(FakeBench):
    """Does what the policy's name says before it answers."""

    def __init__(self, options: Options) -> None:
        super().__init__(quality)
        self.folder = options.folder
        self.notices: list[str] = []
        self.encoding = EncodingWork()

    def timed(self, policy: Any, clip_index: int, metric: str) -> Mapping[str, float]:
        name = policy.name if policy is not None else ""
        if name == "pid":
            return {f"{metric}_ms": 1.0, "pid": float(os.getpid())}
        if name.startswith("notice") and name not in self.notices:
            self.notices.append(name)
        if name == "collector":
            import gc

            return {f"{metric}_ms": 1.0, "collects": float(gc.isenabled())}
        self.harm(name)
        if not isinstance(policy, Policy | None):
            return {f"{metric}_ms": policy.ratio}
        return super().timed(policy if name in ("good", "bad") else None, clip_index, metric)

    def score(self, policy: Policy | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        name = policy.name if policy is not None else ""
        for count, outcome in enumerate(super().score(policy if name in ("good", "bad") else None, examples)):
            if count == 3 and name:
                self.harm(name)
            self.mark("scored")
            self.encoding += EncodingWork(passes=1, seconds=0.5)
            yield outcome

    def mark(self, name: str) -> int:
        """Count how often something happened, over all processes."""
        with (self.folder / name).open("a") as file:
            file.write(".")
        return (self.folder / name).stat().st_size

    def harm(self, name: str) -> None:
        if name in ("SIGSEGV", "SIGKILL"):
            os.kill(os.getpid(), getattr(signal, name))
        if name == "forever":
            time.sleep(600)
        if name == "print":
            print("to standard output")
        if name.startswith("warn"):
            warnings.warn(f"take care: {name}", stacklevel=1)
        if name == "memory-once" and self.mark("memory-once") == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        self.throw(name)

    def throw(self, name: str) -> None:
        if name == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        if name == "device":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if name == "data-error":
            raise DataError("data: cannot be used\nin two lines")
        if name == "unknown-name":
            raise UnknownNameError("here", "stage", "topk", ["top-k"])
        if name == "file-error":
            raise PolicyFileError("there", ["one", "two"])
        if name == "value-error":
            raise ValueError("not that")
        if name == "home":
            raise Home("home", what="broken")


def harmful(options: Options) -> Harmful:
    if options.plugin is not None:
        default().add_file(options.plugin)
    if options.start == "refuse":
        raise ModelError("checkpoint tiny: is not there.")
    return Harmful(options)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"
