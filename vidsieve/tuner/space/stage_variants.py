"""Which stages of a policy a search may switch off or exchange, and the policies that this makes."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.errors import PolicyError, UsageError, suggest
from vidsieve.framework.hookspecs import KV_HOOKS
from vidsieve.framework.policy.file import CHOICES
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.space.knobs import STAGES, Knob, knobs_of

OFF = "(off)"
"""What stands at a place whose stage is switched off; no stage can have this name."""
MOST_COMBINATIONS = 256


@dataclass(frozen=True)
class Place:
    """A stage that may change: `choices` are names of registered stages and perhaps `OFF`.

    `published` is the stage of the policy itself, which need not be among them. `wanted` says that the policy's
    `search:` section wants this place open; otherwise the stage declares itself optional.
    """

    label: str
    published: str
    choices: tuple[str, ...]
    wanted: bool = False


@dataclass(frozen=True)
class Variant:
    """A policy with certain stages, and its searched settings."""

    policy: Policy
    knobs: tuple[Knob, ...]

    def parameters(self, published: Policy) -> Iterator[tuple[str, Knob]]:
        """Yield (prefix of the Optuna parameter, knob). Two stages that share a label differ in it."""
        uses = {bound.label: bound.use for bound in published.stages}
        for knob in self.knobs:
            bound = self._bound(knob)
            other = uses.get(bound.label, bound.use) != bound.use
            yield f"{published.name}/{bound.use}" if other else published.name, knob

    def value(self, knob: Knob) -> Any:
        """Return what the policy sets for a knob."""
        return getattr(self._bound(knob).stage, knob.name.rpartition(".")[2])

    def _bound(self, knob: Knob) -> BoundStage:
        label = knob.name.rpartition(".")[0]
        return next(bound for bound in self.policy.stages if bound.label == label)


def places_of(policy: Policy) -> tuple[Place, ...]:
    """List the places of `policy` with more than one valid choice, or another than the published one.

    Raises:
        UsageError: `search: stages:` names an unknown stage, is of a wrong form, wants what never makes a policy, or
            there are too many combinations to check them all.
    """
    wanted = _wanted(policy)
    places = [
        place
        for bound in policy.stages
        if (place := _place(policy, bound, wanted.get(bound.label))).choices != (bound.use,)
    ]
    count = math.prod(len(place.choices) for place in places)
    if count > MOST_COMBINATIONS:
        raise UsageError(
            f"policy {policy.name!r}, search: stages: {count} combinations, at most {MOST_COMBINATIONS} are searched. "
            f"Fix some: {places[0].label}: fixed."
        )
    sound = set(_combinations(policy, places))
    kept = []
    for index, place in enumerate(places):
        choices = tuple(each for each in place.choices if any(key[index] == each for key in sound))
        if place.wanted and choices != place.choices:
            _refuse_choice(policy, place, next(each for each in place.choices if each not in choices))
        if choices != (place.published,):
            kept.append(Place(place.label, place.published, choices, place.wanted))
    return tuple(kept)


def decode_only(policy: Policy) -> frozenset[str]:
    """List the labels of the stages that do nothing before the first token."""
    return frozenset(bound.label for bound in policy.stages if set(bound.hooks) <= {*KV_HOOKS})


def variants_of(
    policy: Policy, places: Sequence[Place], offers: frozenset[str] | None, idle: frozenset[str] = frozenset()
) -> dict[tuple[str, ...], Variant]:
    """Make every combination at `places` that is a valid policy and needs no more than `offers`.

    The settings of the stages labelled `idle` are not searched.

    Raises:
        UsageError: the `search:` section gives a setting a range that does not fit.
    """
    return {
        key: Variant(made, tuple(knob for knob in knobs_of(made) if knob.name.rpartition(".")[0] not in idle))
        for key, made in _combinations(policy, places).items()
        if offers is None or made.needs() <= offers
    }


def _wanted(policy: Policy) -> Mapping[str, Any]:
    """Read the `stages` of the `search:` section."""
    wanted = policy.search.get(STAGES, {})
    where = f"policy {policy.name!r}, search: stages"
    if not isinstance(wanted, Mapping):
        raise UsageError(f"{where}: expected stage labels with fixed, optional or a list of stages, got {wanted!r}.")
    labels = [bound.label for bound in policy.stages]
    for label in wanted:
        if label not in labels:
            raise UsageError(f"{where}: no stage labelled {label!r}. {suggest(str(label), labels)}")
    return wanted


def _place(policy: Policy, bound: BoundStage, wanted: Any) -> Place:
    """List the choices at the place of `bound`."""
    if wanted is None or wanted == "fixed":
        optional = wanted is None and bound.stage.optional
        return Place(bound.label, bound.use, (bound.use, OFF) if optional else (bound.use,))
    if wanted == "optional":
        return Place(bound.label, bound.use, (bound.use, OFF), wanted=True)
    where = f"policy {policy.name!r}, search: stages: {bound.label}"
    if not isinstance(wanted, list | tuple) or not wanted or len(set(map(str, wanted))) < len(wanted):
        raise UsageError(f"{where}: expected {', '.join(CHOICES)} or a list of different stages, got {wanted!r}.")
    known = (bound.use, *(other.use for other in policy.alternatives.get(bound.label, ())))
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"{where}: no stage {name!r} at hand. {suggest(str(name), known)} A policy file finds registered "
                "stages by name; a Policy made in Python is given them as `alternatives`."
            )
    return Place(bound.label, bound.use, tuple(wanted), wanted=True)


def _combinations(policy: Policy, places: Sequence[Place]) -> dict[tuple[str, ...], Policy]:
    """Make the combinations that are valid policies."""
    found = {}
    for key in itertools.product(*(place.choices for place in places)):
        try:
            found[key] = _made(policy, dict(zip(places, key, strict=True)))
        except PolicyError:
            continue
    return found


def _made(policy: Policy, chosen: Mapping[Place, str]) -> Policy:
    """Make `policy` with its places filled as chosen. Raises PolicyError if that is no valid policy."""
    without = [place.label for place, choice in chosen.items() if choice == OFF]
    instead = {
        place.label: next(each for each in policy.alternatives[place.label] if each.use == choice)
        for place, choice in chosen.items()
        if choice not in (OFF, place.published)
    }
    return policy.with_(without=without, instead=instead) if without or instead else policy


def _refuse_choice(policy: Policy, place: Place, choice: str) -> None:
    """Say why a choice that the author lists is never one."""
    refusal = "it cannot be left out" if choice == OFF else f"{choice!r} cannot stand there"
    try:
        _made(policy, {place: choice})
        why = "no combination with the other choices makes a policy"
    except PolicyError as error:
        why = str(error).splitlines()[0]
    raise UsageError(f"policy {policy.name!r}, search: stages: {place.label}: {refusal}: {why}")
