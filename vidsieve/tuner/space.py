"""The search space: which policy, how many tokens, which settings; conditional and defined by running through it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidsieve.framework.policy import Policy
from vidsieve.tuner.knobs import RETENTION, Knob, knobs_of

RETENTION_DIGITS = 4


@dataclass(frozen=True)
class Candidate:
    """A point of the space: the policy it makes, and what was chosen."""

    base: str
    policy: Policy
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PolicySpace:
    """One policy with the ranges of its retention ratio (None: its own settings decide the count) and settings."""

    policy: Policy
    retention: tuple[float, float] | None
    knobs: tuple[Knob, ...] = field(default=())

    @classmethod
    def of(cls, policy: Policy, retention: tuple[float, float] | None) -> "PolicySpace":
        """The space of `policy` with its declared settings. Raises UsageError for a faulty `search:` section."""
        return cls(policy, retention, knobs_of(policy))

    def suggest(self, trial: Any) -> Candidate:
        """Let an Optuna trial choose. Raises UsageError if the settings do not go together."""
        ratio = None
        if self.retention is not None:
            low, high = self.retention
            asked = trial.suggest_float(f"{self.policy.name}/{RETENTION}", low, high)
            ratio = min(high, max(low, round(asked, RETENTION_DIGITS)))
        settings = {knob.name: knob.suggest(trial, self.policy.name) for knob in self.knobs}
        return Candidate(self.policy.name, self.policy.with_(retention_ratio=ratio, settings=settings), settings)

    def preset(self, retention_ratio: float | None = None) -> dict[str, Any] | None:
        """Optuna parameters of the policy as published, or None if they lie outside the space.

        Optuna runs an enqueued value out of range with a mere warning, so it is checked here.
        """
        params: dict[str, Any] = {"policy": self.policy.name}
        if self.retention is not None:
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


class Space:
    """All policies of a search, by name."""

    def __init__(self, entries: Mapping[str, PolicySpace]) -> None:
        self.entries = dict(entries)

    def suggest(self, trial: Any) -> Candidate:
        """Choose a policy, then what depends on it."""
        return self.entries[trial.suggest_categorical("policy", list(self.entries))].suggest(trial)

    def to_dict(self) -> dict[str, Any]:
        """The ranges, for reports and for telling two studies apart."""
        return {
            name: {
                "hash": entry.policy.hash,
                RETENTION: list(entry.retention) if entry.retention else None,
                "settings": {knob.name: knob.to_dict() for knob in entry.knobs},
            }
            for name, entry in self.entries.items()
        }
