"""Choose the examples of a search and of its final judgement, checked before anything runs."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.errors import DataError
from vidsieve.framework.task import SPLITS, Example, Split, Task
from vidsieve.tuner.request import TuneRequest

EVERY = 1_000_000
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

    @property
    def splits(self) -> dict[Split, tuple[Example, ...]]:
        """The examples by the name of their split."""
        return {"search": self.search, "rerank": self.rerank, "heldout": self.heldout}

    def to_dict(self) -> dict[str, Any]:
        """Return counts, SHA-256 of the id lists, and the held-out ids, for provenance."""
        described: dict[str, Any] = {
            name: {
                "examples": len(examples),
                "videos": len({example.group for example in examples}),
                "ids_sha256": ids_hash([example.id for example in examples]),
            }
            for name, examples in self.splits.items()
        }
        ids = [example.id for example in self.heldout]
        return {"task": dict(self.task), "seed": self.seed, "splits": described, "heldout_ids": ids}


def list_name(digests: Sequence[str]) -> str:
    """Name a list of examples by their digests."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def ids_hash(ids: Sequence[str]) -> str:
    """Hash the ids in order, written as JSON, with SHA-256."""
    return hashlib.sha256(json.dumps(list(ids), ensure_ascii=False).encode()).hexdigest()


def digests(examples: Sequence[Example]) -> list[str]:
    """Hash the question and the video of each example (its name and size), not its id, which may be a line's number.

    The second of two examples alike gets another digest.
    """
    found: list[str] = []
    for example in examples:
        size = example.video.stat().st_size if example.video is not None and example.video.is_file() else None
        content = [example.group, example.question, example.options, example.answer, example.kind, size]
        digest = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:12]
        found.append(digest)
    seen: Counter[str] = Counter()
    for index, digest in enumerate(found):
        seen[digest] += 1
        if seen[digest] > 1:
            found[index] = f"{digest}#{seen[digest]}"
    return found


def choose_examples(task: Task, request: TuneRequest) -> Data:
    """Ask the task for search, re-rank and held-out examples.

    Raises:
        DataError: too few examples, ids that repeat, a video in two splits, or missing answers where they are needed.
    """
    return _checked(task, request, {split: _split(task, split, n, request.data_seed) for split, n in _counts(request)})


def remaining_examples(task: Task, request: TuneRequest, kept: Mapping[str, Sequence[str]]) -> Data:
    """Find those of the examples `kept` (their digests, by split) that the task still has, each in its old split.

    A split is drawn as a share of all videos, so one that is taken away may move others across its borders.

    Raises:
        DataError: too few of them are left.
    """
    pool = _by_digest(task, request, dict(_counts(request)))
    if any(digest not in pool for names in kept.values() for digest in names):
        pool = _by_digest(task, request, dict.fromkeys(SPLITS, EVERY)) | pool
    left = {split: tuple(pool[digest] for digest in kept.get(split, ()) if digest in pool) for split in SPLITS}
    return _checked(task, request, left)


def _by_digest(task: Task, request: TuneRequest, counts: Mapping[Split, int]) -> dict[str, Example]:
    found: dict[str, Example] = {}
    for split, count in counts.items():
        examples = _split(task, split, count, request.data_seed)
        found |= zip(digests(examples), examples, strict=True)
    return found


def _counts(request: TuneRequest) -> tuple[tuple[Split, int], ...]:
    """Count the examples requested of each split."""
    return (("search", request.examples), ("heldout", request.heldout_count), ("rerank", request.rerank_count))


def _checked(task: Task, request: TuneRequest, splits: Mapping[Split, tuple[Example, ...]]) -> Data:
    """Check the splits and make them `Data`. Raises DataError as `choose_examples` does."""
    search, heldout = (_enough(task, split, splits[split]) for split in ("search", "heldout"))
    rerank = splits["rerank"] if len(splits["rerank"]) >= LEAST else ()
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
    """Refuse a split with fewer than two examples. Raises DataError."""
    if len(examples) < LEAST:
        raise DataError(
            f"data {task.name!r}, {split} examples: {len(examples)} found; at least {LEAST} are needed. Give more "
            "labelled questions or videos."
        )
    return examples


def _split(task: Task, split: Split, count: int, seed: int) -> tuple[Example, ...]:
    """Read and check the examples of one split."""
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
