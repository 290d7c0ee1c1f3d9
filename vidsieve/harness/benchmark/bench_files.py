"""Write the result of a benchmark as JSON, and read one that was written earlier."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import DataError

KIND, FORMAT = "vidsieve bench", 1
NEEDED = ("about", "model", "video", "memory", "settings", "workloads", "complete")


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        DataError: there is no such file, or it holds no result of a benchmark, or one of another format.
    """
    file = Path(path).expanduser()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"no JSON ({error})"
        raise DataError(f"result {path}: cannot be read: {why}. Name a file that a benchmark wrote.") from None
    if not isinstance(found, dict) or found.get("kind") != KIND or not all(name in found for name in NEEDED):
        raise DataError(f"result {path}: holds no result of a benchmark; name a file that one wrote.")
    if found.get("format") != FORMAT:
        raise DataError(f"result {path}: has format {found.get('format')}, this version reads {FORMAT}; measure again.")
    return found


def write_result(result: Mapping[str, Any], path: str | Path, *, force: bool = False) -> Path:
    """Write a result, whole or not at all. Raises as `write_atomically`."""
    from vidsieve.tuner.atomic_files import write_atomically

    return write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n", force=force)
