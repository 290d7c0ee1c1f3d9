"""The short table of the README: a few policies at a quarter of the tokens, what they cost and what they bring."""

from collections.abc import Mapping
from typing import Any

from policy_cells.page import RUNGS, Cells, about, accuracy
from policy_cells.wanted import MODEL_NAMES, REQUEST_RATIO

SHOWN = (
    "vidcom2",
    "evs",
    "dycoke",
    "divprune",
    "fastvid",
    "fastv",
    "pyramiddrop",
    "pixel-change",
    "random",
    "uniform-frames",
)
"""One or two of every kind, and the controls."""
HEAD = (" · ".join(RUNGS), "first token", "request")


def headline_text(measured_on: Mapping[str, Mapping[str, str]], cells: Cells) -> str:
    """One table: right answers on each rung and how many times faster, model beside model; a line says how measured."""
    facts = {model: measured_on[model] for model in MODEL_NAMES if model in measured_on} or measured_on
    mine = {name: cell for name, cell in cells.items() if cell["model"] in facts}
    head = [
        "policy",
        *(f"{column}, {model}" if not at else column for model in facts for at, column in enumerate(HEAD)),
    ]
    lines = [
        "Printed by `python scripts/policy_table.py`. " + about(facts, mine),
        "",
        _line(head),
        "|---" * len(head) + "|",
    ]
    whole = [cell for model in facts for cell in (_shares(cells, f"{model} none own"), "1", "1")]
    lines.append(_line(["all tokens", *whole]))
    for name in SHOWN:
        columns = [f"`{name}`"]
        for place in (f"{model} {name} {REQUEST_RATIO:g}" for model in facts):
            columns.append(_shares(cells, place))
            columns += [_times(cells, f"{place} {clock}", f"{clock}_ratio") for clock in ("ttft", "e2e")]
        lines.append(_line(columns))
    return "\n".join(lines) + "\n"


def _shares(cells: Cells, place: str) -> str:
    found = [cells.get(f"{place} {rung}", {}) for rung in RUNGS]
    return " · ".join(f"{100 * accuracy(cell).value:.1f}" if "clips" in cell else _absent(cell) for cell in found)


def _times(cells: Cells, name: str, field: str) -> str:
    cell = cells.get(name, {})
    return f"{1 / cell[field]['value']:.2f}×" if field in cell else _absent(cell)


def _absent(cell: Mapping[str, Any]) -> str:
    return str(cell.get("missing", "not run"))


def _line(columns: Any) -> str:
    return f"| {' | '.join(columns)} |"
