"""Finished cells in one JSON file, a line each; what is there and still holds is not measured again."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from policy_cells.wanted import Cell

FORMAT = 1


class Store:
    """The cells measured so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"format": FORMAT}
        if told["format"] != FORMAT:
            raise SystemExit(
                f"{file}: has format {told['format']}, this script writes {FORMAT}; remove it or use --data"
            )
        self.measured_on: dict[str, Any] = told.get("measured_on", {})
        self.cells: dict[str, dict[str, Any]] = told.get("cells", {})

    def has(self, cell: Cell) -> bool:
        """Whether the cell was measured with all it depends on as it is now."""
        return self.cells.get(cell.name, {}).get("key") == cell.key

    def put(self, cell: Cell, found: dict[str, Any], facts: dict[str, str]) -> None:
        """Keep a cell, on the disk too: the file is whole at every moment."""
        place = {"key": cell.key, "model": cell.model, "policy": cell.policy, "ratio": cell.ratio, "what": cell.what}
        self.cells[cell.name] = place | found
        self.measured_on[cell.model] = facts
        self._save()

    def keep_only(self, names: Iterable[str]) -> None:
        """Let go of cells that no longer belong to the table, such as those of a policy that was renamed."""
        kept = set(names)
        if gone := self.cells.keys() - kept:
            self.cells = {name: cell for name, cell in self.cells.items() if name not in gone}
            self._save()

    def _save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".tmp")
        partial.write_text(written(self.measured_on, self.cells), encoding="utf-8")
        os.replace(partial, self.file)


def written(measured_on: dict[str, Any], cells: dict[str, dict[str, Any]]) -> str:
    """The file: one cell a line, so that a changed cell is a changed line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(cells[name])}" for name in sorted(cells)]
    facts = json.dumps(measured_on, indent=2, sort_keys=True)
    body = ",\n".join(lines)
    return f'{{"format": {FORMAT},\n"measured_on": {facts},\n"cells": {{\n{body}\n}}}}\n'
