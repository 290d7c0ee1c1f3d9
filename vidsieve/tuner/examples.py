"""The examples of a search and of its final judgement, checked before anything runs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.errors import DataError
from vidsieve.framework.task import Example, Split, Task
from vidsieve.tuner.request import TuneRequest

LEAST = 2
"""Fewer examples than this have no spread to measure."""


@dataclass(frozen=True)
class Data:
    """Examples that choose (`search`), that rank the leaders once more (`rerank`), and that judge, once (`heldout`).

    No video is in two of them. `rerank` is empty where the data has too few videos for it.
    """

    search: tuple[Example, ...]
    heldout: tuple[Example, ...]
    metric: str
    task: dict[str, str]
    seed: int
    rerank: tuple[Example, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For provenance: counts, content of the id lists as SHA-256, and the held-out ids themselves."""
        splits = {"search": self.search, "rerank": self.rerank, "heldout": self.heldout}
        described: dict[str, Any] = {
            name: {
                "examples": len(examples),
                "videos": len({example.group for example in examples}),
                "ids_sha256": ids_hash([example.id for example in examples]),
            }
            for name, examples in splits.items()
        }
        ids = [example.id for example in self.heldout]
        return {"task": dict(self.task), "seed": self.seed, "splits": described, "heldout_ids": ids}


def ids_hash(ids: Sequence[str]) -> str:
    """SHA-256 of the ids in order, written as JSON."""
    return hashlib.sha256(json.dumps(list(ids), ensure_ascii=False).encode()).hexdigest()


def pick_examples(task: Task, request: TuneRequest) -> Data:
    """Ask the task for search, re-rank and held-out examples.

    Raises:
        DataError: too few examples, ids that repeat, a video in two splits, or missing answers where they are needed.
    """
    search = _enough(task, "search", _split(task, "search", request.examples, request.data_seed))
    heldout = _enough(task, "heldout", _split(task, "heldout", request.heldout_count, request.data_seed))
    rerank = _split(task, "rerank", request.rerank_count, request.data_seed)
    rerank = rerank if len(rerank) >= LEAST else ()
    _refuse_shared(task, "search", search, "held-out", heldout)
    _refuse_shared(task, "re-rank", rerank, "held-out", heldout)
    _refuse_shared(task, "search", search, "re-rank", rerank)
    return Data(search, heldout, task.metric, dict(task.describe()), request.data_seed, rerank)


def _refuse_shared(task: Task, one: str, ours: Sequence[Example], other: str, theirs: Sequence[Example]) -> None:
    """Refuse splits that have an id or a video in common. Raises DataError."""
    for kind, field in (("id", "id"), ("video", "group")):
        shared = {getattr(e, field) for e in ours} & {getattr(e, field) for e in theirs}
        if shared:
            raise DataError(
                f"data {task.name!r}: {kind} {min(shared)!r} is in the {one} and in the {other} examples "
                f"({len(shared)} such); the final judgement would be of what was chosen on. Split by video."
            )


def _enough(task: Task, split: Split, examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """The examples, if there are any to speak of. Raises DataError."""
    if len(examples) < LEAST:
        raise DataError(
            f"data {task.name!r}, {split} examples: {len(examples)} found; at least {LEAST} are needed. Give more "
            "labelled questions or videos."
        )
    return examples


def _split(task: Task, split: Split, count: int, seed: int) -> tuple[Example, ...]:
    """The examples of one split, checked."""
    examples = tuple(task.examples(split, count, seed=seed))
    where = f"data {task.name!r}, {split} examples"
    ids = [example.id for example in examples]
    repeated = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise DataError(
            f"{where}: id {repeated[0]!r} stands more than once ({len(repeated)} such); ids must be unique."
        )
    if task.metric == "accuracy":
        missing = [example.id for example in examples if example.answer is None]
        if missing:
            raise DataError(
                f"{where}: {len(missing)} have no answer, the first is {missing[0]!r}. Label them, or use `videos` to "
                "score agreement with the uncompressed model."
            )
    return examples
