"""Which examples `vidsieve eval` measures on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.errors import DataError, UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example, Task

DEFAULT_COUNT = 200


@dataclass(frozen=True, eq=False)
class EvalExamples:
    """Examples, what they are in words, and the rate that was stored for exactly these, if any (a fraction)."""

    examples: tuple[Example, ...]
    told: str
    stored: float | None = None


def pick(task: Task, policy: Policy, *, heldout: bool, count: int | None, seed: int | None) -> EvalExamples:
    """The stored held-out examples of a tuned policy if they fit the data (a must with `heldout`), else by count.

    Raises:
        UsageError: `heldout` for a policy without stored ids.
        DataError: the stored ids are not in this data, or there is nothing to measure on.
    """
    ids: list[str] = list(policy.provenance.get("heldout_ids") or ())
    same_data = _described(_told(policy).get("task") or {}) == _described(task.describe())
    if heldout and not ids:
        raise UsageError(
            f"`heldout`: policy {policy.name!r} stores no held-out examples; it is no file that tune wrote."
        )
    if heldout or (ids and same_data and count is None and seed is None):
        return _stored(task, policy, ids)
    everything = getattr(task, "all", None)
    if everything is not None and count is None and seed is None:
        found: Sequence[Example] = everything
        told = f"all {len(found)} examples"
    else:
        found = task.examples("heldout", count or DEFAULT_COUNT, seed=seed or 0)
        told = f"{len(found)} held-out examples (seed {seed or 0})"
    if not found:
        raise DataError(f"data {task.name!r}: no example to measure on; give more videos.")
    return EvalExamples(tuple(found), told)


def _told(policy: Policy) -> dict[str, Any]:
    return dict(policy.provenance.get("data") or {})


def _described(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task's description without the videos that were left out: what is left is the same data."""
    return {name: value for name, value in task.items() if name != "skipped"}


def _stored(task: Task, policy: Policy, ids: list[str]) -> EvalExamples:
    """The examples with the stored ids, in their order."""
    seed = int(_told(policy).get("seed", 0))
    whole: Task = getattr(task, "whole", task)
    pool = [*whole.examples("heldout", len(ids), seed=seed), *getattr(whole, "all", ())]
    by_id = {example.id: example for example in pool}
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise DataError(
            f"data {task.name!r}: {len(missing)} of the {len(ids)} held-out examples that policy {policy.name!r} "
            f"stores are not in it (the first: {missing[0]!r}). Give the data it was tuned on."
        )
    accuracy = dict(policy.provenance.get("accuracy") or {})
    stored = (accuracy.get("policy") or {}).get("value")
    found = tuple(by_id[name] for name in ids if by_id[name].group not in getattr(task, "skipped", {}))
    if len(found) < len(ids):
        return EvalExamples(found, f"{len(found)} of the {len(ids)} stored held-out examples")
    return EvalExamples(found, f"the {len(ids)} stored held-out examples", stored)
