"""A policy with a stage left out or another in its place, under a name that says so."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vidsieve.framework.errors import UnknownNameError, UsageError
from vidsieve.framework.policy.policy import BoundStage, Policy, closer_of


def reshaped(policy: Policy, without: Collection[str], instead: Mapping[str, BoundStage]) -> Policy:
    """`policy` less the stages labelled in `without`, with those of `instead` at the labels they are given for.

    A last reducing stage that has its count fixed lets go of the retention ratio. Entries of the `search:` section
    that concern stages no longer there are dropped.

    Raises:
        UnknownNameError: a label that no stage has.
        UsageError: a stage is both to be left out and to be exchanged.
        PolicyError: what is left does not fit together.
    """
    labels = [bound.label for bound in policy.stages]
    for label in (*without, *instead):
        if label not in labels:
            raise UnknownNameError(f"policy {policy.name!r}", "stage", label, labels)
        if label in without and label in instead:
            raise UsageError(f"policy {policy.name!r}: stage {label!r} is to be left out and to be exchanged; do one.")
    stages: list[BoundStage] = []
    name, summary = policy.name, policy.summary
    for bound in policy.stages:
        if bound.label in without:
            name += f"-without-{_short(policy, bound.label)}"
            summary += f" Without {bound.label}."
        elif bound.label in instead:
            other = instead[bound.label]
            name += f"-with-{_short(policy, other.use)}"
            summary += f" With {other.use} in place of {bound.label}."
            stages.append(other)
        else:
            stages.append(bound)
    closer = closer_of(stages)
    keeps_ratio = closer is None or closer is policy.closer or not closer.fixed
    alternatives = {label: found for label, found in policy.alternatives.items() if label not in (*without, *instead)}
    return replace(
        policy,
        name=name,
        summary=summary.strip(),
        stages=tuple(stages),
        retention_ratio=policy.retention_ratio if keeps_ratio else None,
        alternatives=alternatives,
        search=_still_meant(policy.search, stages, alternatives, {*without, *instead}),
    )


def _short(policy: Policy, stage: str) -> str:
    """`frame-budget` of `vidcom2.frame-budget` in a policy named vidcom2."""
    return stage.removeprefix(f"{policy.name.partition('-')[0]}.")


def _still_meant(
    search: Mapping[str, Any],
    stages: Sequence[BoundStage],
    alternatives: Mapping[str, Sequence[BoundStage]],
    touched: Collection[str],
) -> dict[str, Any]:
    """The entries of a `search:` section that name something these stages or alternatives have."""
    there = [*stages, *(bound for found in alternatives.values() for bound in found)]
    settings = {f"{bound.label}.{setting}" for bound in there for setting in bound.stage.settings()}
    kept = {key: value for key, value in search.items() if "." not in key or key in settings}
    choices = kept.pop("stages", None)
    if isinstance(choices, Mapping):
        choices = {label: choice for label, choice in choices.items() if label not in touched}
    return kept | ({"stages": choices} if choices else {})
