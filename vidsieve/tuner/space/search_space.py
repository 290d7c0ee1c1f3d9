"""The search space: which policy, how many tokens, which settings; conditional and defined by running through it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.request import Metric
from vidsieve.tuner.space.candidate import COMPOSED, RETENTION_DIGITS, Candidate, Solve
from vidsieve.tuner.space.composed_space import ComposedSpace
from vidsieve.tuner.space.knobs import RETENTION, STAGES, has_free_retention
from vidsieve.tuner.space.stage_variants import Place, Variant, decode_only, places_of, variants_of


@dataclass(frozen=True)
class PolicySpace:
    """One policy with its retention ratio, its places where stages may change, and what each variant can set.

    `retention` is the range searched, or None where the policy's own settings decide the count. Where it is `solved`
    it is no parameter of the search: each candidate gets the one solved for it when it is suggested, and without a
    solver the upper end. `variants` are keyed by what stands at each of `places`.
    """

    policy: Policy
    retention: tuple[float, float] | None
    solved: bool
    places: tuple[Place, ...]
    variants: Mapping[tuple[str, ...], Variant]
    shape: VideoShape | None = None

    @classmethod
    def of(
        cls,
        policy: Policy,
        retention: tuple[float, float] | None,
        *,
        solved: bool = False,
        bench: Bench | None = None,
        metric: Metric | None = None,
    ) -> "PolicySpace":
        """Build the space of `policy`, as its stages declare it and its `search:` section narrows it.

        Stages that work in decode alone stay as published where `metric` ends at the first token: nothing that is
        measured would tell their settings apart.

        Variants that need more than the model of `bench` offers are left out, and a searched retention ratio is held
        within what the other settings can reach there; without a bench neither is known.

        Raises:
            UsageError: a faulty `search:` section.
        """
        idle = decode_only(policy) if metric == "ttft" else frozenset()
        places = tuple(place for place in places_of(policy) if place.label not in idle or place.wanted)
        variants = variants_of(policy, places, bench.offers if bench else None, idle)
        return cls(policy, retention, solved, places, variants, bench.shape if bench else None)

    def suggest(self, trial: Any, solve: Solve | None = None) -> Candidate:
        """Let an Optuna trial choose. Raises UsageError if the settings do not go together, and what `solve` raises."""
        chosen = self._choose(trial.suggest_categorical)
        variant = self.variants[chosen]
        free = self.retention is not None and has_free_retention(variant.policy)
        searched = self._searched_ratio(trial) if free and not self.solved else None
        settings = {knob.name: knob.suggest(trial, name) for name, knob in variant.parameters(self.policy)}
        policy = variant.policy.with_(settings=settings)
        if free:
            ratio = searched if searched is not None else self._solved_ratio(policy, solve)
            policy = policy.with_(retention_ratio=self._reachable(policy, ratio))
        stages = {place.label: choice for place, choice in zip(self.places, chosen, strict=True)}
        return Candidate(self.policy.name, policy, settings, stages, searched)

    def _searched_ratio(self, trial: Any) -> float:
        """Let an Optuna trial choose the retention ratio."""
        assert self.retention is not None
        low, high = self.retention
        ratio = trial.suggest_float(f"{self.policy.name}/{RETENTION}", low, high)
        return min(high, max(low, round(ratio, RETENTION_DIGITS)))

    def _solved_ratio(self, policy: Policy, solve: Solve | None) -> float:
        """Solve the retention ratio of `policy`; without a solver, return the one known when the space was made."""
        assert self.retention is not None
        return self.retention[1] if solve is None else solve(self.policy.name, policy)

    def _reachable(self, policy: Policy, ratio: float) -> float:
        """Clip `ratio` to what `policy` can reach."""
        if self.shape is None:
            return ratio
        low, high = policy.attainable(self.shape)
        return min(max(ratio, low), high)

    def _choose(self, choose: Callable[[str, list[str]], str]) -> tuple[str, ...]:
        """Choose the stage at each place; only choices that lead to a valid variant are offered.

        A parameter has one list of choices in all trials, so where a part of them is left, it has a name of its own.
        """
        chosen: tuple[str, ...] = ()
        for place in self.places:
            left = [each for each in place.choices if self._leads_on((*chosen, each))]
            name = f"{self.policy.name}/{STAGES}/{place.label}"
            if len(left) < len(place.choices):
                name += f" ({' or '.join(left)})"
            chosen = (*chosen, choose(name, left) if len(left) > 1 else left[0])
        return chosen

    def _leads_on(self, chosen: tuple[str, ...]) -> bool:
        return any(key[: len(chosen)] == chosen for key in self.variants)

    def preset(self, retention_ratio: float | None = None) -> dict[str, Any] | None:
        """Return Optuna parameters of the policy as published, or None if they lie outside the space.

        Optuna runs an enqueued value out of range with a mere warning, so it is checked here. A retention ratio that
        is solved is no parameter: then the one given here does not matter.
        """
        params: dict[str, Any] = {"policy": self.policy.name}
        published = tuple(place.published for place in self.places)
        if published not in self.variants:
            return None
        following = iter(published)
        stages: dict[str, str] = {}
        self._choose(lambda name, left: stages.setdefault(name, next(following)))
        params |= stages
        if self.retention is not None and not self.solved:
            if retention_ratio is None or not self.retention[0] <= retention_ratio <= self.retention[1]:
                return None
            params[f"{self.policy.name}/{RETENTION}"] = retention_ratio
        variant = self.variants[published]
        for prefix, knob in variant.parameters(self.policy):
            value = variant.value(knob)
            if not knob.allows(value):
                return None
            params[f"{prefix}/{knob.name}"] = value
        return params

    def size(self) -> int | None:
        """Count the candidates, a solved retention ratio counted once; None for endlessly many."""
        searched = self.retention is not None and not self.solved and self.retention[0] < self.retention[1]
        total = 0
        for variant in self.variants.values():
            endless = searched and has_free_retention(variant.policy)
            sizes = [None if endless else 1, *(knob.size() for knob in variant.knobs)]
            if None in sizes:
                return None
            total += math.prod(size for size in sizes if size is not None)
        return total

    def to_dict(self) -> dict[str, Any]:
        """Return the ranges, for reports and to identify a study."""
        settings = {
            f"{prefix}/{knob.name}".removeprefix(f"{self.policy.name}/"): knob.to_dict()
            for variant in self.variants.values()
            for prefix, knob in variant.parameters(self.policy)
        }
        return {
            "hash": self.policy.hash,
            RETENTION: "solved" if self.solved else list(self.retention) if self.retention else None,
            STAGES: {place.label: list(place.choices) for place in self.places},
            "variants": [variant.policy.name for variant in self.variants.values()],
            "settings": settings,
        }


class Space:
    """All policies of a search, by name, and perhaps the compositions of their stages and of all others."""

    def __init__(self, entries: Mapping[str, PolicySpace], composed: ComposedSpace | None = None) -> None:
        self.entries = dict(entries)
        self.composed = composed

    @property
    def choices(self) -> dict[str, PolicySpace | ComposedSpace]:
        """What a candidate is made of: the policies in their order, then compositions."""
        return {**self.entries, **({COMPOSED: self.composed} if self.composed is not None else {})}

    def suggest(self, trial: Any, solve: Solve | None = None) -> Candidate:
        """Choose a policy, then what depends on it; `solve` gives the retention ratio where it is not searched."""
        choices = self.choices
        return choices[trial.suggest_categorical("policy", list(choices))].suggest(trial, solve)

    def size(self) -> int | None:
        """Count the distinct candidates; None for endlessly many."""
        sizes = [entry.size() for entry in self.choices.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the ranges, for reports and to identify a study."""
        return {name: entry.to_dict() for name, entry in self.choices.items()}
