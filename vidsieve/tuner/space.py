"""The search space: which policy, how many tokens, which settings; conditional and defined by running through it."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vidsieve.framework.policy import Policy
from vidsieve.tuner.knobs import RETENTION, Knob, knobs_of

RETENTION_DIGITS = 4
Solve = Callable[[str, Policy], float]
"""(name of the published policy, candidate) -> the retention ratio the candidate is to have; it may raise."""


@dataclass(frozen=True)
class Candidate:
    """A point of the space: the policy it makes, and what was chosen."""

    base: str
    policy: Policy
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What was chosen, as text. Two candidates of one key differ at most in a retention ratio that was solved."""
        return json.dumps([self.base, dict(self.settings)], sort_keys=True)


@dataclass(frozen=True)
class PolicySpace:
    """One policy with its retention ratio and the ranges of its settings.

    `retention` is the range searched, or None where the policy's own settings decide the count. Where it is `solved`
    it is no parameter of the search: each candidate gets the one solved for it when it is suggested, and without a
    solver the upper end.
    """

    policy: Policy
    retention: tuple[float, float] | None
    knobs: tuple[Knob, ...] = field(default=())
    solved: bool = False

    @classmethod
    def of(cls, policy: Policy, retention: tuple[float, float] | None, *, solved: bool = False) -> "PolicySpace":
        """The space of `policy` with its declared settings. Raises UsageError for a faulty `search:` section."""
        return cls(policy, retention, knobs_of(policy), solved)

    def suggest(self, trial: Any, solve: Solve | None = None) -> Candidate:
        """Let an Optuna trial choose. Raises UsageError if the settings do not go together, and what `solve` raises."""
        ratio = self._searched_ratio(trial)
        settings = {knob.name: knob.suggest(trial, self.policy.name) for knob in self.knobs}
        policy = self.policy.with_(retention_ratio=ratio, settings=settings)
        if self.retention is not None and self.solved:
            ratio = self.retention[1] if solve is None else solve(self.policy.name, policy)
            policy = policy.with_(retention_ratio=ratio)
        return Candidate(self.policy.name, policy, settings)

    def _searched_ratio(self, trial: Any) -> float | None:
        """The retention ratio an Optuna trial chooses, or None if it is not for the search to choose."""
        if self.retention is None or self.solved:
            return None
        low, high = self.retention
        asked = trial.suggest_float(f"{self.policy.name}/{RETENTION}", low, high)
        return min(high, max(low, round(asked, RETENTION_DIGITS)))

    def preset(self, retention_ratio: float | None = None) -> dict[str, Any] | None:
        """Optuna parameters of the policy as published, or None if they lie outside the space.

        Optuna runs an enqueued value out of range with a mere warning, so it is checked here. A retention ratio that
        is solved is no parameter: then the one given here does not matter.
        """
        params: dict[str, Any] = {"policy": self.policy.name}
        if self.retention is not None and not self.solved:
            if retention_ratio is None or not self.retention[0] <= retention_ratio <= self.retention[1]:
                return None
            params[f"{self.policy.name}/{RETENTION}"] = retention_ratio
        for knob in self.knobs:
            label, _, setting = knob.name.rpartition(".")
            stage = next(bound.stage for bound in self.policy.stages if bound.label == label)
            value = getattr(stage, setting)
            if not knob.allows(value):
                return None
            params[f"{self.policy.name}/{knob.name}"] = value
        return params

    def size(self) -> int | None:
        """How many candidates there are, a solved retention ratio counted once; None for endlessly many."""
        searched = self.retention is not None and not self.solved and self.retention[0] < self.retention[1]
        sizes = [None if searched else 1, *(knob.size() for knob in self.knobs)]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def to_dict(self) -> dict[str, Any]:
        """The ranges, for reports and for telling two studies apart."""
        return {
            "hash": self.policy.hash,
            RETENTION: "solved" if self.solved else list(self.retention) if self.retention else None,
            "settings": {knob.name: knob.to_dict() for knob in self.knobs},
        }


class Space:
    """All policies of a search, by name."""

    def __init__(self, entries: Mapping[str, PolicySpace]) -> None:
        self.entries = dict(entries)

    def suggest(self, trial: Any, solve: Solve | None = None) -> Candidate:
        """Choose a policy, then what depends on it; `solve` gives the retention ratio where it is not searched."""
        return self.entries[trial.suggest_categorical("policy", list(self.entries))].suggest(trial, solve)

    def size(self) -> int | None:
        """How many distinct candidates there are; None for endlessly many."""
        sizes = [entry.size() for entry in self.entries.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def to_dict(self) -> dict[str, Any]:
        """The ranges, for reports and for telling two studies apart."""
        return {name: entry.to_dict() for name, entry in self.entries.items()}
