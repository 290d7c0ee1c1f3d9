"""What was measured before the search as plain data and back, so that a resumed study goes on in the same space."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.events import Bounds
from vidsieve.tuner.judge.statistics import Interval
from vidsieve.tuner.measure.bounds import Explored
from vidsieve.tuner.measure.measurement import Measurement, Target
from vidsieve.tuner.measure.retention_curve import RetentionCurve
from vidsieve.tuner.space.search_space import PolicySpace, Space


def explored_to_dict(measurement: Measurement, explored: Explored) -> dict[str, Any]:
    """Bounds, space, floor and what the lab has learnt, as JSON can hold it; every number in full."""
    bounds = explored.bounds
    told = {field.name: getattr(bounds, field.name) for field in fields(bounds)}
    told |= {"baseline": asdict(bounds.baseline), "floor": asdict(bounds.floor)}
    told |= {"limits": dict(bounds.limits), "set_aside": dict(bounds.set_aside)}
    told |= {"policies": list(bounds.policies), "warnings": list(bounds.warnings)}
    return {
        "bounds": told,
        # a list: Optuna needs the policies in the very same order, and a mapping may come back sorted
        "space": [
            {
                "policy": name,
                "hash": entry.policy.hash,
                "retention": list(entry.retention) if entry.retention else None,
                "solved": entry.solved,
            }
            for name, entry in explored.space.entries.items()
        ],
        "floor": {"policy": explored.floor.name, "retention_ratio": explored.floor.retention_ratio},
        "target": asdict(measurement.target),
        "warnings": list(measurement.warnings),
        "curves": [
            {
                "name": name,
                "like": _name_of(curve.like, measurement.curves),
                "points": [list(point) for point in curve.points],
            }
            for name, curve in measurement.curves.items()
        ],
    }


def explored_from_dict(measurement: Measurement, policies: Sequence[Policy], data: Mapping[str, Any]) -> Explored:
    """The same `Explored` again; sets the measurement's target, curves and warnings as they were.

    Raises:
        TuneError: a policy of the study is not among `policies`, or is another one under that name.
    """
    by_name = {policy.name: policy for policy in policies}
    entries = {}
    for entry in data["space"]:
        policy = _policy(by_name, entry["policy"])
        if policy.hash != entry["hash"]:
            raise TuneError(
                f"study: policy {policy.name!r} was {entry['hash']} when it was measured and is {policy.hash} now; "
                "start a new study."
            )
        retention = tuple(entry["retention"]) if entry["retention"] is not None else None
        entries[policy.name] = PolicySpace.of(
            policy, retention, solved=entry["solved"], bench=measurement.bench, metric=measurement.request.metric
        )
    floor = _policy(by_name, data["floor"]["policy"])
    told = dict(data["bounds"])
    told |= {"baseline": Interval(**told["baseline"]), "floor": Interval(**told["floor"])}
    told |= {"policies": tuple(told["policies"]), "warnings": tuple(told["warnings"])}
    measurement.set_target(Target(**data["target"]))
    measurement.warnings[:] = data["warnings"]
    measurement.curves = _curves(data["curves"])
    floor = floor.with_(retention_ratio=data["floor"]["retention_ratio"])
    return Explored(Bounds(**told), Space(entries), floor)


def _policy(by_name: Mapping[str, Policy], name: str) -> Policy:
    if name not in by_name:
        raise TuneError(f"study: it searches policy {name!r}, which is not given now; start a new study.")
    return by_name[name]


def _curves(told: Sequence[Mapping[str, Any]]) -> dict[str, RetentionCurve]:
    """The curves; those like another are tied to it again."""
    curves = {each["name"]: RetentionCurve(each["points"]) for each in told}
    for each in told:
        if each["like"] is not None:
            curves[each["name"]].like = curves[each["like"]]
    return curves


def _name_of(curve: RetentionCurve | None, curves: Mapping[str, RetentionCurve]) -> str | None:
    return next((name for name, each in curves.items() if each is curve), None)
