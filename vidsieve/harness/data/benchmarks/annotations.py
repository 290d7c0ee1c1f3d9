"""Entries of annotation files, JSON or parquet; what is wrong is noted with its file, entry and field."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import DataError


@dataclass(frozen=True, eq=False)
class Entry:
    """One entry of an annotation file. `faults` is shared by all entries and filled by those that are wrong."""

    where: str
    fields: Mapping[str, Any]
    faults: list[str]

    def fault(self, field: str, sentence: str) -> None:
        """Note what is wrong with a field."""
        self.faults.append(f"{self.where}, field {field!r}: {sentence}.")

    def text(self, field: str) -> str:
        """Return a field that must be text, or a number; empty where it is neither, which is noted."""
        if field not in self.fields:
            self.fault(field, "is missing")
            return ""
        text = _text(self.fields[field])
        if text is None:
            self.fault(field, f"must be text, got {self.fields[field]!r}")
        return text or ""

    def options(self, field: str) -> tuple[str, ...]:
        """Return a field that must be a list of at least two texts; empty where it is not, which is noted."""
        if field not in self.fields:
            self.fault(field, "is missing")
            return ()
        found = self.fields[field]
        texts = [_text(one) for one in found] if isinstance(found, list) else []
        if len(texts) < 2 or None in texts:
            self.fault(field, f"must be a list of at least two texts, got {found!r}")
            return ()
        return tuple(text for text in texts if text is not None)

    def one_of(self, field: str, options: Sequence[str]) -> str:
        """Return a field that must be one of `options`."""
        answer = self.text(field)
        if answer and options and answer not in options:
            self.fault(field, f"{answer!r} is not among the options {list(options)!r}")
        return answer


def _text(value: Any) -> str | None:
    """Write a text or number as text; None for anything else, and for nothing but blanks."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def json_entries(file: Path, root: Path, faults: list[str]) -> Iterator[Entry]:
    """Read the entries of a JSON file that holds one list of objects."""
    name = file.relative_to(root).as_posix()
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        faults.append(f"{name}: cannot be read: {error.strerror or error}.")
        return
    except (ValueError, RecursionError) as error:
        faults.append(f"{name}: is not valid JSON: {error}.")
        return
    yield from _entries(rows, name, faults)


def parquet_entries(file: Path, root: Path, faults: list[str]) -> Iterator[Entry]:
    """Read the rows of a parquet file.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"`data` {file}: a parquet file is read with pyarrow, which is not installed; "
            "pip install 'vidsieve[parquet]'."
        ) from None
    name = file.relative_to(root).as_posix()
    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        faults.append(f"{name}: is no parquet file that can be read: {str(error).splitlines()[0]}.")
        return
    yield from _entries(rows, name, faults)


def _entries(rows: Any, name: str, faults: list[str]) -> Iterator[Entry]:
    if not isinstance(rows, list):
        faults.append(f"{name}: must be a list of objects, got {type(rows).__name__}.")
        return
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield Entry(f"{name}, entry {number}", row, faults)
        else:
            faults.append(f"{name}, entry {number}: must be an object, got {type(row).__name__}.")
