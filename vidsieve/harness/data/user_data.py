"""`data` FILE.jsonl: a user's labelled questions, every fault told with its line."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vidsieve.framework.errors import DataError, path_fault, suggest
from vidsieve.framework.task import Example, Split
from vidsieve.harness.data.splits import split_examples

KEYS = ("id", "video", "question", "options", "answer", "kind")
MOST_FAULTS = 50


class LabelledData:
    """A task read from JSON lines: `video`, `question`, `options` (or none), `answer`; `id` and `kind` if wanted.

    Relative videos are looked for beside the file. With `missing_ok` a video that is not there is no fault yet: whoever
    opens it finds out, and the others stay in the splits they are in. Raises DataError with all faults at once.
    """

    metric: Literal["accuracy", "agreement"] = "accuracy"

    def __init__(self, path: str | Path, *, missing_ok: bool = False) -> None:
        if (fault := path_fault(path)) is not None:
            raise DataError(f"`data` {str(path)!r}: {fault}.")
        file = Path(path).expanduser()
        try:
            raw = file.read_bytes()
            text = raw.decode("utf-8-sig")
        except OSError as error:
            raise DataError(f"`data` {path}: cannot be read: {error.strerror or error}.") from None
        except UnicodeDecodeError as error:
            raise DataError(f"`data` {path}: is no UTF-8 text ({error.reason} at byte {error.start}).") from None
        self.name = file.stem
        self._sha256 = hashlib.sha256(raw).hexdigest()
        self.all = _read(text, file, missing_ok)

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """The first `count` examples of a split; fewer if there are fewer."""
        return split_examples(self.all, split, seed)[:count]

    def describe(self) -> dict[str, str]:
        """What provenance keeps: name, content hash, sizes; no path."""
        videos = len({example.group for example in self.all})
        return {
            "name": self.name,
            "source": "labelled questions",
            "sha256": self._sha256,
            "examples": str(len(self.all)),
            "videos": str(videos),
        }


def _read(text: str, file: Path, missing_ok: bool) -> tuple[Example, ...]:
    """The examples in `text`, or DataError listing every fault."""
    faults: list[str] = []
    examples: list[Example] = []
    lines_by_id: dict[str, int] = {}
    # split at newlines only: splitlines() would also cut at U+2028 inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row, wrong = _row(line, file, missing_ok)
        if not wrong:
            example = _example(row, number, file)
            first = lines_by_id.setdefault(example.id, number)
            if first != number:
                wrong = [f"the id {example.id!r} stands in line {first} already; ids must be unique"]
            examples.append(example)
        faults += [f"{file}:{number}: {sentence}." for sentence in wrong]
    if not examples and not faults:
        faults.append(f"{file}: holds no example; give one JSON object a line with video, question and answer.")
    if faults:
        more = [f"... and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise DataError("\n".join([*faults[:MOST_FAULTS], *more]))
    return tuple(examples)


def _row(line: str, file: Path, missing_ok: bool) -> tuple[dict[str, Any], list[str]]:
    """One line as an object, and what is wrong with it."""
    try:
        row = json.loads(line, object_pairs_hook=_no_repeats)
    except ValueError as error:
        return {}, [f"not valid JSON: {error}"]
    except RecursionError:
        return {}, ["not usable JSON: nested too deeply"]
    if not isinstance(row, dict):
        return {}, [f"must be a JSON object with video, question and answer, got {type(row).__name__}"]
    wrong = [f"unknown key {key!r}. {suggest(key, KEYS)[:-1]}" for key in row if key not in KEYS]
    for key in ("video", "question", "answer"):
        if key not in row:
            wrong.append(f"the key {key!r} is missing")
        elif not isinstance(row[key], str) or not row[key].strip():
            wrong.append(f"{key} must be text, got {row[key]!r}")
    for key in ("id", "kind"):
        if key in row and not isinstance(row[key], str | int):
            wrong.append(f"{key} must be text, got {row[key]!r}")
    wrong += _option_faults(row)
    if isinstance(row.get("video"), str) and row["video"].strip():
        if (fault := path_fault(row["video"])) is not None:
            wrong.append(f"video {row['video']!r}: {fault}")
        elif not missing_ok and not _video(row["video"], file).is_file():
            wrong.append(f"video {row['video']!r}: no such file ({_video(row['video'], file)})")
    return row, wrong


def _option_faults(row: dict[str, Any]) -> list[str]:
    options = row.get("options")
    if options is None or options == []:
        return []
    if not isinstance(options, list) or not all(isinstance(item, str) and item.strip() for item in options):
        return [f"options must be a list of texts, or left out for an open question, got {options!r}"]
    wrong = []
    if len(options) < 2:
        wrong.append(f"options must be at least two, got {options!r}")
    if len(set(options)) < len(options):
        wrong.append(f"options has an entry twice: {options!r}")
    if "answer" in row and row["answer"] not in options:
        wrong.append(f"the answer {row['answer']!r} is not among the options {options!r}")
    return wrong


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return row


def _video(text: str, file: Path) -> Path:
    """A video's path: absolute, or relative to the JSONL's folder."""
    return (file.parent / Path(text).expanduser()).resolve()


def _example(row: dict[str, Any], number: int, file: Path) -> Example:
    video = _video(row["video"], file)
    return Example(
        id=str(row.get("id", f"line-{number}")),
        # one name for a file however it is spelt, and the same one wherever the data lies
        group=os.path.relpath(video, file.parent.resolve()),
        question=row["question"],
        options=tuple(row["options"]) if row.get("options") else None,
        answer=row["answer"],
        kind=str(row.get("kind", "")),
        video=video,
    )
