"""The settings of a policy that may be searched, read off the stages' own declarations."""

import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic.fields import FieldInfo

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.errors import UsageError, suggest
from vidsieve.framework.policy.policy import Policy

Kind = Literal["float", "int", "choice"]
RETENTION = "retention_ratio"
STAGES = "stages"
DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One searched setting: a range (`low` to `high` inclusive, perhaps logarithmic) or a list of `choices`."""

    name: str
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Any, prefix: str) -> Any:
        """Ask an Optuna trial for a value, under the name `prefix/name`."""
        name = f"{prefix}/{self.name}"
        if self.kind == "choice":
            return trial.suggest_categorical(name, list(self.choices))
        if self.kind == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def allows(self, value: Any) -> bool:
        """Whether a value lies in this range or among the choices."""
        if self.kind == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        fits = isinstance(value, int if self.kind == "int" else (int, float)) and not isinstance(value, bool)
        return fits and math.isfinite(value) and self.low <= value <= self.high

    def size(self) -> int | None:
        """Count the values; None for a range of numbers."""
        if self.kind == "choice":
            return len(self.choices)
        return int(self.high) - int(self.low) + 1 if self.kind == "int" else None

    def to_dict(self) -> dict[str, Any]:
        """Return the range for a report."""
        if self.kind == "choice":
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high} | ({"log": True} if self.log else {})


def has_free_retention(policy: Policy) -> bool:
    """Whether a retention ratio decides the count, of visual tokens or of frames; else the policy's own settings do."""
    return policy.retention_ratio is not None and policy.counter is not None and not policy.counter.fixed


def knobs_of(policy: Policy) -> tuple[Knob, ...]:
    """List the searched settings of `policy`: declared with `tunable`, and given a value in the policy.

    A setting left open (None) stays open: it is the one the core solves for the retention ratio, or it means "auto".
    A `search:` section of the policy narrows, widens within the declared bounds, or fixes (`fixed`) a setting; it may
    speak of alternative stages too, whose settings are searched where those stand in.

    Raises:
        UsageError: the `search:` section names something unknown or gives a range that does not fit.
    """
    found = _all_declared(policy.stages)
    elsewhere = _all_declared([bound for others in policy.alternatives.values() for bound in others])
    for name, wanted in policy.search.items():
        if name in (RETENTION, STAGES, DEFAULT):
            continue
        where = f"policy {policy.name!r}, search: {name}"
        if name in found:
            narrowed = narrow(where, found.pop(name), wanted)
            if narrowed is not None:
                found[name] = narrowed
        elif name not in elsewhere:
            raise UsageError(f"{where}: no searched setting of that name. {suggest(name, found | elsewhere)}")
    return tuple(found.values())


def _all_declared(stages: Iterable[BoundStage]) -> dict[str, Knob]:
    """Collect the knobs of all `stages` that have a value."""
    found = {}
    for bound in stages:
        for setting, declared in bound.stage.settings().items():
            value = getattr(bound.stage, setting)
            knob = _declared(f"{bound.label}.{setting}", declared, value)
            if knob is not None and value is not None:
                found[knob.name] = knob
    return found


def _declared(name: str, declared: FieldInfo, value: Any) -> Knob | None:
    """Make the knob that a field declares with `tunable`, or None."""
    extra = declared.json_schema_extra
    if not isinstance(extra, dict) or not extra.get("tunable"):
        return None
    kind = _plain_type(declared.annotation)
    if kind is bool:
        return Knob(name=name, kind="choice", choices=(False, True))
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return Knob(name=name, kind="choice", choices=choices) if len(choices) > 1 else None
    low, high = extra.get("low"), extra.get("high")
    if kind not in (int, float) or not isinstance(low, int | float) or not isinstance(high, int | float) or low >= high:
        return None
    return Knob(name=name, kind="int" if kind is int else "float", low=low, high=high, log=bool(extra.get("log")))


def _plain_type(annotation: Any) -> Any:
    """Return `float` for `float | None`; other annotations as they are."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return members[0] if len(members) == 1 else annotation
    return annotation


def narrow(where: str, knob: Knob, wanted: Any) -> Knob | None:
    """Narrow `knob` by a `search:` entry: `{low, high, log}`, a list of values, or `fixed` (None).

    Raises:
        UsageError: the entry does not fit the declaration.
    """
    if wanted == "fixed":
        return None
    if isinstance(wanted, list) and wanted:
        for value in wanted:
            if not knob.allows(value):
                raise UsageError(f"{where}: {value!r} is not allowed; the stage declares {knob.to_dict()}.")
        return Knob(name=knob.name, kind="choice", choices=tuple(wanted)) if len(wanted) > 1 else None
    if not isinstance(wanted, Mapping) or knob.kind == "choice" or not set(wanted) <= {"low", "high", "log"}:
        raise UsageError(f"{where}: expected {{low, high, log}}, a list of values or `fixed`, got {wanted!r}.")
    new = replace(
        knob,
        low=wanted.get("low", knob.low),
        high=wanted.get("high", knob.high),
        log=bool(wanted.get("log", knob.log)),
    )
    if not (knob.allows(new.low) and knob.allows(new.high) and new.low < new.high and (new.low > 0 or not new.log)):
        raise UsageError(f"{where}: got {dict(wanted)}, but the stage declares {knob.to_dict()}.")
    return new


def searched_by_default(policy: Policy) -> bool:
    """Whether a search that names no policies takes this one: yes, unless its `search:` section says `default: false`.

    Raises:
        UsageError: the entry is neither true nor false.
    """
    wanted = policy.search.get(DEFAULT, True)
    if not isinstance(wanted, bool):
        raise UsageError(f"policy {policy.name!r}, search: {DEFAULT}: expected true or false, got {wanted!r}.")
    return wanted


def retention_window(policy: Policy) -> tuple[float, float]:
    """Read the retention ratios that the policy's `search:` section allows; (0, 1) without one.

    Raises:
        UsageError: the entry is no `{low, high}` within 0 to 1.
    """
    wanted = policy.search.get(RETENTION)
    if wanted is None:
        return (0.0, 1.0)
    where = f"policy {policy.name!r}, search: {RETENTION}"
    window = narrow(where, Knob(name=RETENTION, kind="float", low=0.0, high=1.0), wanted)
    if window is None or window.kind == "choice" or window.log:
        raise UsageError(f"{where}: expected {{low, high}}, got {wanted!r}.")
    return (window.low, window.high)
