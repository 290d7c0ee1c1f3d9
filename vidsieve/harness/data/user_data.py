"""A user's data as tasks: labelled questions (`data`), a folder of videos (`videos`), one video; split by video."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vidsieve.framework.errors import DataError, MediaError, path_fault, suggest
from vidsieve.framework.task import Example, Split, Task

KEYS = ("id", "video", "question", "options", "answer", "kind")
MOST_FAULTS = 50
HELDOUT_SHARE = 0.5
"""Of all videos: what can be certified hangs on the held-out examples alone."""
RERANK_SHARE = 0.4
"""Of the videos left, so that the search, which ranks dozens of policies, keeps more than the re-rank of a few."""


class LabelledData:
    """A task read from JSON lines: `video`, `question`, `options` (or none), `answer`; `id` and `kind` if wanted.

    Relative paths of videos begin at the file's folder. With `missing_ok` a missing video is no fault yet: opening it
    raises, and the others stay in the splits they are in. Raises DataError with all faults at once.
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
        """Return the first `count` examples of a split; fewer if there are fewer."""
        return split_examples(self.all, split, seed)[:count]

    def describe(self) -> dict[str, str]:
        """Describe for provenance: name, content hash, sizes; no path."""
        videos = len({example.group for example in self.all})
        return {
            "name": self.name,
            "source": "labelled questions",
            "sha256": self._sha256,
            "examples": str(len(self.all)),
            "videos": str(videos),
        }


def _read(text: str, file: Path, missing_ok: bool) -> tuple[Example, ...]:
    """Read the examples in `text`. Raises DataError listing every fault."""
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
    refuse(faults)
    return tuple(examples)


def refuse(faults: Sequence[str]) -> None:
    """Raise DataError with the first `MOST_FAULTS` of what is wrong, and how many more there are; nothing for none."""
    if faults:
        more = [f"... and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise DataError("\n".join([*faults[:MOST_FAULTS], *more]))


def _row(line: str, file: Path, missing_ok: bool) -> tuple[dict[str, Any], list[str]]:
    """Read one line as an object, and list what is wrong with it."""
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
    """Return a video's path: absolute, or relative to the JSONL's folder."""
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


def split_examples(examples: Sequence[Example], split: Split, seed: int) -> list[Example]:
    """Return the examples of one split, in an order drawn by `seed`; all questions of a video are in one split only.

    Half of the videos (rounded up) are held out, a fifth (rounded down) ranks the leaders once more, three tenths are
    searched on. Fewer than six videos leave none to rank with.
    """
    groups = sorted(dict.fromkeys(example.group for example in examples), key=lambda group: _draw(seed, group))
    heldout = round(len(groups) * HELDOUT_SHARE + 1e-9)
    rerank = int((len(groups) - heldout) * RERANK_SHARE)
    chosen = {
        "heldout": groups[:heldout],
        "rerank": groups[heldout : heldout + rerank],
        "search": groups[heldout + rerank :],
    }[split]
    place = {group: number for number, group in enumerate(chosen)}
    return sorted((e for e in examples if e.group in place), key=lambda e: place[e.group])


def _draw(seed: int, group: str) -> str:
    """Draw a number for a group by a hash, so that adding a video does not shuffle the others."""
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


class VideoFolder:
    """A task that asks one question of every video in a folder and its subfolders.

    Raises MediaError for a folder without videos.
    """

    metric: Literal["accuracy", "agreement"] = "agreement"

    def __init__(self, folder: str | Path, question: str) -> None:
        from vidsieve.media import list_videos

        if (fault := path_fault(folder)) is not None:
            raise MediaError(f"`videos` {str(folder)!r}: {fault}.")
        root = Path(folder).expanduser().resolve()
        self.name = root.name
        self._question = question
        names = [(file.relative_to(root).as_posix(), file) for file in list_videos(root)]
        self.all = tuple(Example(id=name, group=name, question=question, video=file) for name, file in names)

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """Return the first `count` videos of a split; fewer if there are fewer."""
        return split_examples(self.all, split, seed)[:count]

    def describe(self) -> dict[str, str]:
        """Describe for provenance: names and sizes of the files as a hash, and the question; no path."""
        listing = [f"{e.id}:{_size(e.video)}" for e in self.all if e.video is not None]
        return {
            "name": self.name,
            "source": "videos without labels",
            "sha256": hashlib.sha256("\n".join(listing).encode()).hexdigest(),
            "videos": str(len(self.all)),
            "question": self._question,
        }


def _size(file: Path) -> int | None:
    """Count the bytes of a file; None where it cannot be read."""
    try:
        return file.stat().st_size
    except OSError:
        return None


class OneVideo:
    """One question about one video; in every split, as nothing is chosen by it."""

    metric: Literal["accuracy", "agreement"] = "agreement"

    def __init__(self, name: str, example: Example) -> None:
        self.name, self.example = name, example

    @classmethod
    def of_file(cls, video: str, question: str) -> "OneVideo":
        """Make the task of a user's own video. Raises MediaError for a name that is no file's."""
        if (fault := path_fault(video)) is not None:
            raise MediaError(f"video {video!r}: {fault}.")
        file = Path(video).expanduser()
        return cls(file.name, Example(id=file.name, group=file.name, question=question, video=file))

    @classmethod
    def first_of(cls, task: Task) -> "OneVideo":
        """Take the first held-out example of a task. Raises DataError if it has none."""
        found = task.examples("heldout", 1)
        if not found:
            raise DataError(f"data {task.name!r}: holds no example; give a VIDEO and a QUESTION.")
        return cls(task.name, found[0])

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """Return the example."""
        return [self.example][:count]

    def describe(self) -> dict[str, str]:
        """Return its name."""
        return {"name": self.name}
