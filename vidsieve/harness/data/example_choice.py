"""Choose the examples that a model is measured on: the task, and for an evaluation the part of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import DataError, UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example, Task
from vidsieve.harness.model_choice import Choice
from vidsieve.harness.setup import DEFAULT_QUESTION, Setup


def choose_task(setup: Setup, choice: Choice) -> Task:
    """Choose the user's data, or for a bundled model its own task.

    Raises:
        UsageError: a real checkpoint without data; the message names the two ways.
        DataError, MediaError: data that cannot be used.
    """
    if setup.data is not None:
        if Path(setup.data).expanduser().is_dir():
            from vidsieve.harness.data.benchmarks.benchmark_folder import BenchmarkFolder

            return BenchmarkFolder(setup.data, missing_ok=setup.skip_bad)
        from vidsieve.harness.data.user_data import LabelledData

        return LabelledData(setup.data, missing_ok=setup.skip_bad)
    if setup.videos is not None:
        from vidsieve.harness.data.user_data import VideoFolder

        return VideoFolder(setup.videos, setup.question or DEFAULT_QUESTION)
    if choice.bundled is None:
        rung = " `rung` belongs to the bundled models." if setup.rung else ""
        raise UsageError(
            f"data: {choice.name} has to be measured on videos of yours. Give `data` FILE.jsonl (labelled questions: "
            "the score is accuracy), or `videos` DIR (no labels: the score is agreement with the uncompressed "
            f"model).{rung}"
        )
    from vidsieve.bundled.bundled_models import DEFAULT_RUNG
    from vidsieve.bundled.bundled_task import BundledTask

    frames, shape = _frame_count(setup, choice), choice.bundled.shape
    return BundledTask(setup.rung or DEFAULT_RUNG, frame_count=frames, shape=shape)


def _frame_count(setup: Setup, choice: Choice) -> int:
    """Count the frames of a bundled clip: what the model was trained with, unless `frames` says."""
    assert choice.bundled is not None
    most = choice.bundled.shape.frames
    if setup.fps is not None:
        raise UsageError(
            f"`fps`: the bundled task's clips are taken by count; give `frames` {most} or {most // 2}, or leave both "
            "out."
        )
    if setup.frames is None:
        return choice.bundled.frame_count
    if setup.frames not in (most, most // 2):
        raise UsageError(f"`frames`: the bundled task has clips of {most} or {most // 2} frames, got {setup.frames}.")
    return setup.frames


DEFAULT_COUNT = 200


@dataclass(frozen=True, eq=False)
class EvalExamples:
    """Examples, what they are in words, and the rate that was stored for exactly these, if any (a fraction)."""

    examples: tuple[Example, ...]
    summary: str
    stored: float | None = None


def choose_examples(task: Task, policy: Policy, *, heldout: bool, count: int | None, seed: int | None) -> EvalExamples:
    """Choose the held-out examples that the policy stores if they fit the data (a must with `heldout`), else by count.

    Raises:
        UsageError: `heldout` for a policy without stored ids.
        DataError: the stored ids are not in this data, or there is nothing to measure on.
    """
    ids: list[str] = list(policy.provenance.get("heldout_ids") or ())
    same_data = _described(_stored_data(policy).get("task") or {}) == _described(task.describe())
    if heldout and not ids:
        raise UsageError(
            f"`heldout`: policy {policy.name!r} stores no held-out examples; it is no file that tune wrote."
        )
    if heldout or (ids and same_data and count is None and seed is None):
        return _stored(task, policy, ids)
    everything = getattr(task, "all", None)
    if everything is not None and count is None and seed is None:
        found: Sequence[Example] = everything
        summary = f"all {len(found)} examples"
    else:
        found = task.examples("heldout", count or DEFAULT_COUNT, seed=seed or 0)
        summary = f"{len(found)} held-out examples (seed {seed or 0})"
    if not found:
        raise DataError(f"data {task.name!r}: no example to measure on; give more videos.")
    return EvalExamples(tuple(found), summary)


def _stored_data(policy: Policy) -> dict[str, Any]:
    return dict(policy.provenance.get("data") or {})


def _described(task: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a task without the videos that were left out: what is left is the same data."""
    return {name: value for name, value in task.items() if name != "skipped"}


def _stored(task: Task, policy: Policy, ids: list[str]) -> EvalExamples:
    """Find the examples with the stored ids, in their order."""
    seed = int(_stored_data(policy).get("seed", 0))
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
