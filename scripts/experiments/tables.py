"""What replays say in numbers (`methods_report`, `ablations_report`), and those numbers as Markdown (`written`)."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from replay_bench import Truth

Row = Mapping[str, Any]
Report = dict[str, Any]
CONTROLS = ("random", "uniform-frames")
"""Policies of the grid that are never searched."""


def methods_report(rows: Sequence[Row], truths: Mapping[str, Truth], seeds: int, clock: str) -> Report:
    """Every way to search over all targets of a model; the first one target by target; what was there to be found."""
    models = {}
    for model, truth in truths.items():
        mine = [row for row in rows if row["model"] == model]
        names = list(dict.fromkeys(row["method"] for row in mine))
        speedups = sorted({row["speedup"] for row in mine}, reverse=True)
        first = [row for row in mine if row["method"] == names[0]]
        models[model] = {
            "grid_examples": grid_examples(truth),
            "searches": [numbers(name, [row for row in mine if row["method"] == name]) for name in names],
            "targets": [numbers(f"{s:g} times faster", [r for r in first if r["speedup"] == s]) for s in speedups],
            "truth": [_truth(truth, speedup) for speedup in speedups],
        }
    return {"kind": "methods", "seeds": seeds, "clock": clock, "models": models}


def ablations_report(rows: Sequence[Row], truths: Mapping[str, Truth], seeds: int, clock: str) -> Report:
    """Every variant over all targets of a model, with its paired difference to the first."""
    models = {}
    for model, truth in truths.items():
        mine = [row for row in rows if row["model"] == model]
        names = list(dict.fromkeys(row["method"] for row in mine))
        first = {(row["speedup"], row["seed"]): row for row in mine if row["method"] == names[0]}
        searches = []
        for name in names:
            theirs = [row for row in mine if row["method"] == name]
            pairs = [(row["regret"], first[row["speedup"], row["seed"]]["regret"]) for row in theirs]
            change = [a - b for a, b in pairs if a is not None and b is not None]
            searches.append(numbers(name, theirs) | {"change": None if name == names[0] else spread(change)})
        models[model] = {"grid_examples": grid_examples(truth), "searches": searches}
    return {"kind": "ablations", "seeds": seeds, "clock": clock, "models": models}


def numbers(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What a line of a table tells of some studies."""
    regrets = [row["regret"] for row in rows if row["regret"] is not None]
    good = [row["regret"] is not None and row["regret"] <= 1 for row in rows]
    return {
        "name": name,
        "studies": len(rows),
        "without_a_pick": len(rows) - len(regrets),
        "regret": spread(regrets),
        "choice": spread([row["choice"] for row in rows if row["choice"] is not None]),
        "within_a_point": 100 * mean(good),
        "meets": 100 * mean(row["meets"] for row in rows),
        "both": 100 * mean(ok and row["meets"] for ok, row in zip(good, rows, strict=True)),
        "worst_miss": 100 * max([0.0, *(row["over"] for row in rows if row["over"] is not None)]),
        "examples": mean(row["search_examples"] for row in rows),
        "timed_runs": mean(row["runs_timed"] for row in rows),
    }


def spread(values: Sequence[float]) -> list[float] | None:
    """Mean and standard error; None without values."""
    if not values:
        return None
    return [mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0]


def grid_examples(truth: Truth, examples: int = 200) -> int:
    """Examples that scoring every searched configuration of the grid would take."""
    return examples * sum(cell.base not in CONTROLS for cell in truth.cells)


def _truth(truth: Truth, speedup: float) -> dict[str, Any]:
    """The exhaustive best and the best control of a target."""
    bases = sorted({cell.base for cell in truth.cells} - set(CONTROLS))
    told: dict[str, Any] = {"target": f"{speedup:g} times faster", "uncompressed": 100 * truth.accuracy(None)}
    for name, among in (("best", bases), ("control", CONTROLS)):
        found = truth.best(1 / speedup, among)
        assert found is not None, "the targets are within reach of every policy"
        policy, accuracy = found
        told[name] = [f"{policy.name} at {policy.retention_ratio:.2f}", 100 * accuracy]
    return told


def written(report: Report) -> str:
    """A report as Markdown."""
    first = f"{report['seeds']} seeds, all targets of a model together; times of the {report['clock']}."
    parts = [first]
    for model, told in report["models"].items():
        parts += [f"### {model}", _table("search", told["searches"], told["grid_examples"])]
        if "targets" in told:
            parts += ["Target by target, as it comes:", _table("target", told["targets"], told["grid_examples"])]
            parts += ["What was there to be found:", _truth_table(told["truth"])]
    return "\n\n".join(parts) + "\n"


HEAD = (
    *("regret (points)", "of it by choice", "within 1 point", "meets target", "both", "worst miss"),
    *("examples", "of the grid's", "timed runs"),
)


def _table(first: str, lines: Sequence[Row], grid: int) -> str:
    changes = any("change" in line for line in lines)
    head = [first, *HEAD, *(["change of regret, paired"] if changes else [])]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for line in lines:
        cells = [
            line["name"],
            _spread(line["regret"]),
            _spread(line["choice"]),
            f"{line['within_a_point']:.0f} %",
            f"{line['meets']:.0f} %",
            f"{line['both']:.0f} %",
            f"{line['worst_miss']:.1f} %",
            f"{line['examples']:.0f}",
            f"{100 * line['examples'] / grid:.0f} %",
            f"{line['timed_runs']:.0f}",
        ]
        if changes:
            cells.append("" if line["change"] is None else f"{line['change'][0]:+.2f} ± {line['change'][1]:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(value: Sequence[float] | None) -> str:
    return "none" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"


def _truth_table(lines: Sequence[Row]) -> str:
    rows = [
        "| target | exhaustive best | its accuracy | best control | its accuracy | uncompressed |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        (best, best_accuracy), (control, control_accuracy) = line["best"], line["control"]
        rows.append(
            f"| {line['target']} | {best} | {best_accuracy:.1f} % | {control} | {control_accuracy:.1f} % "
            f"| {line['uncompressed']:.1f} % |"
        )
    return "\n".join(rows)
