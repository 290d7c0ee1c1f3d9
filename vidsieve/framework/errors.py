"""Every error a user can meet. Each message reads: where: what was asked, what came, what to do.

VidsieveError
├── UsageError           a request that contradicts itself or names something unknown      (exit code 2)
│   └── UnknownNameError a name nobody registered; offers the nearest
├── PolicyError          a policy that cannot do what it says
│   ├── PolicyFileError  a policy file with faults; lists all of them, with their lines
│   ├── RetentionError   a retention ratio the policy cannot reach
│   ├── PlanError        a stage returned a plan the core refuses
│   └── StageError       a stage raised; the cause is chained
├── PluginError          a plugin that cannot be imported or registered
├── ModelError           a model, checkpoint or adapter that is not there
├── InputError           model inputs that do not fit (placeholders, missing tensors)
├── MediaError           a video file that cannot be read
├── DataError            labelled or unlabelled data that cannot be used
└── TuneError            a search that cannot go on
    └── TargetUnreachableError  the floor is above the target                              (exit code 3)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar


class VidsieveError(Exception):
    """Base of all errors meant for people; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class UsageError(VidsieveError):
    """The request itself is wrong: contradicting options, a value out of range."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name nobody registered. The message offers the nearest name and lists the rest."""

    def __init__(self, where: str, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"{where}: no {kind} named {name!r}. {suggest(name, self.known)}")


class PolicyError(VidsieveError):
    """A policy that cannot do what it says."""


class PolicyFileError(PolicyError):
    """A policy file with faults. `faults` holds one line each, all of them at once."""

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.where, self.faults = where, list(faults)
        super().__init__("\n".join(self.faults))


class RetentionError(PolicyError):
    """The retention ratio asked for is outside what the policy can reach."""


class PlanError(PolicyError):
    """A stage returned a plan of wrong shape, dtype, device or content."""


class StageError(PolicyError):
    """A stage raised while deciding; the original exception is the cause."""


class PluginError(VidsieveError):
    """A plugin that cannot be imported or registered."""


class ModelError(VidsieveError):
    """A model, checkpoint or adapter that is not there."""


class InputError(VidsieveError):
    """Model inputs that do not fit together."""


class MediaError(VidsieveError):
    """A video file that cannot be read or written."""


class DataError(VidsieveError):
    """Labelled or unlabelled data that cannot be used."""


class TuneError(VidsieveError):
    """A search that cannot go on."""


class TargetUnreachableError(TuneError):
    """The latency target lies below what any policy reaches here."""

    exit_code = 3


_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def path_fault(name: str | Path) -> str | None:
    """Say why `name` cannot be a path on this machine (it is empty, or an address); None where it can be one."""
    text = str(name)
    if not text.strip():
        return "the name is empty"
    address = _ADDRESS.match(text)
    if address is None:
        return None
    return f"is an address ({address[1]}:), but only files on this machine are read; give the path of one"


def suggest(name: str, known: Iterable[str]) -> str:
    """'Did you mean …? Known: …' for an unknown `name`; empty `known` says so."""
    names = sorted(known)
    if not names:
        return "None is registered."
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names)}."
