"""The tables of the replays, in Markdown."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from replay_bench import Truth

Row = Mapping[str, Any]


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    if not values:
        return "none"
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):.2f} ± {error:.2f}"


def numbers(rows: Sequence[Row]) -> dict[str, Any]:
    """What a line of a table tells of some studies."""
    regrets = [row["regret"] for row in rows if row["regret"] is not None]
    good = [row["regret"] is not None and row["regret"] <= 1 for row in rows]
    return {
        "studies": len(rows),
        "without a pick": len(rows) - len(regrets),
        "regret": spread(regrets),
        "within a point": 100 * mean(good),
        "meets": 100 * mean(row["meets"] for row in rows),
        "both": 100 * mean(ok and row["meets"] for ok, row in zip(good, rows, strict=True)),
        "worst over": 100 * max([row["over"] for row in rows if row["over"] is not None], default=0.0),
        "examples": mean(row["search_examples"] for row in rows),
        "runs timed": mean(row["runs_timed"] for row in rows),
    }


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """`numbers` of every model, target and method."""
    keys = dict.fromkeys((row["model"], row["speedup"], row["method"]) for row in rows)
    return [
        {"model": model, "speedup": speedup, "method": method}
        | numbers([r for r in rows if (r["model"], r["speedup"], r["method"]) == (model, speedup, method)])
        for model, speedup, method in keys
    ]


HEAD = (
    *("regret (points)", "within 1 point", "meets target", "both", "worst miss"),
    *("examples", "of the grid's", "timed runs"),
)


def _line(name: str, rows: Sequence[Row], grid: float) -> str:
    told = numbers(rows)
    cells = (
        told["regret"],
        f"{told['within a point']:.0f} %",
        f"{told['meets']:.0f} %",
        f"{told['both']:.0f} %",
        f"{max(0.0, told['worst over']):.1f} %",
        f"{told['examples']:.0f}",
        f"{100 * told['examples'] / grid:.0f} %",
        f"{told['runs timed']:.0f}",
    )
    return f"| {name} | " + " | ".join(cells) + " |"


def _table(first: str, lines: Sequence[str]) -> str:
    return "\n".join([f"| {first} | " + " | ".join(HEAD) + " |", "|---" * (len(HEAD) + 1) + "|", *lines])


def grid_examples(truth: Truth, examples: int = 200) -> float:
    """Examples that scoring every searched configuration of the grid would take."""
    return examples * sum(cell.base not in ("random", "uniform-frames") for cell in truth.cells)


def methods(rows: Sequence[Row], truths: Mapping[str, Truth], seeds: int) -> str:
    """A table for each model over all targets, then the tuner target by target."""
    parts = [f"{seeds} seeds, all targets of a model together."]
    for model, truth in truths.items():
        mine, grid = [row for row in rows if row["model"] == model], grid_examples(truth)
        names = list(dict.fromkeys(row["method"] for row in mine))
        lines = [_line(name, [row for row in mine if row["method"] == name], grid) for name in names]
        parts += [f"### {model}", _table("search", lines)]
        speedups = sorted({row["speedup"] for row in mine}, reverse=True)
        tuner = [row for row in mine if row["method"] == names[0]]
        lines = [_line(f"{s:g} times faster", [r for r in tuner if r["speedup"] == s], grid) for s in speedups]
        parts += ["The tuner, target by target:", _table("target", lines)]
        parts += [_truth_lines(truth, speedups)]
    return "\n\n".join(parts) + "\n"


def _truth_lines(truth: Truth, speedups: Sequence[float]) -> str:
    """The exhaustive best and the best control of each target."""
    controls = ("random", "uniform-frames")
    bases = sorted({cell.base for cell in truth.cells} - set(controls))
    lines = [
        "| target | exhaustive best | its accuracy | best control | its accuracy | uncompressed |",
        "|---|---|---|---|---|---|",
    ]
    for speedup in speedups:
        cells = []
        for among in (bases, controls):
            policy, accuracy = truth.best(1 / speedup, among)
            cells += [f"{policy.name} at {policy.retention_ratio:.2f}", f"{100 * accuracy:.1f} %"]
        lines.append(f"| {speedup:g} times faster | " + " | ".join(cells) + f" | {100 * truth.accuracy(None):.1f} % |")
    return "\n".join(lines)


def ablations(rows: Sequence[Row], truths: Mapping[str, Truth], seeds: int) -> str:
    """One table for each model, and the paired difference of every variant to the first."""
    parts = [f"{seeds} seeds, all targets of a model together."]
    for model, truth in truths.items():
        mine, grid = [row for row in rows if row["model"] == model], grid_examples(truth)
        names = list(dict.fromkeys(row["method"] for row in mine))
        by_name = {name: {(r["speedup"], r["seed"]): r for r in mine if r["method"] == name} for name in names}
        lines = []
        for name in names:
            pairs = [
                (row["regret"], by_name[names[0]][key]["regret"])
                for key, row in by_name[name].items()
                if row["regret"] is not None and by_name[names[0]][key]["regret"] is not None
            ]
            change = "" if name == names[0] else f" (change {spread([a - b for a, b in pairs])})"
            lines.append(_line(name + change, list(by_name[name].values()), grid))
        parts += [f"### {model}", _table("variant", lines)]
    return "\n\n".join(parts) + "\n"
