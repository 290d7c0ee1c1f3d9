"""The stored cells as Markdown: a table a model, the reasons of what is missing, and the frame budget in pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from vidsieve.tuner.statistics import Interval, clustered_error, paired_difference, wilson_interval

RUNGS = ("static", "jitter", "cuts")
BUDGETED = tuple((name, f"vidcom2-{name}") for name in ("fastv", "pyramiddrop", "sparsevlm"))
"""A policy, and the same one with VidCom²'s frame budget before it."""
START, END = "<!-- quoted from scripts/data/{} -->", "<!-- end of quote -->"
HEAD = ("policy", "asked", "in the prompt", "over layers", *RUNGS, "TTFT ÷ uncompressed")

Stored = Mapping[str, Any]
Cells = Mapping[str, Stored]


def table_text(measured_on: Mapping[str, Mapping[str, str]], cells: Cells) -> str:
    """Everything that is stored."""
    reasons: list[str] = []
    lines = ["Printed by `python scripts/policy_table.py`. " + about(measured_on, cells), ""]
    for model in sorted(measured_on, reverse=True):
        mine = [cell for cell in cells.values() if cell["model"] == model]
        lines += [f"### {model}", "", *_table(mine, reasons), ""]
    lines += [f"[{number}] {reason}" + "  " for number, reason in enumerate(reasons, start=1)]
    lines += [""] if reasons else []
    lines += ["### With and without a frame budget", "", *_pairs(cells, sorted(measured_on, reverse=True))]
    return "\n".join(lines) + "\n"


def quoted(page: str, text: str, name: str = "policy_table.md") -> str:
    """The page with this text between the markers of the quote from scripts/data/NAME."""
    start = START.format(name)
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"the page lacks its markers {start} and {END}")
    return f"{before}{start}\n{text}{END}{after}"


def about(measured_on: Mapping[str, Mapping[str, str]], cells: Cells) -> str:
    """How much was asked, and of what."""
    counts = [sum(map(len, cell["clips"])) for cell in cells.values() if "clips" in cell]
    if not counts:
        return "Nothing is measured yet."
    asked = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    loads = [cell["load"] for cell in cells.values() if "load" in cell]
    facts = next(iter(measured_on.values()))
    load = f", load average {min(loads):.1f} to {max(loads):.1f} while timing" if loads else ""
    machine = f"{facts['device_name']}, {facts['threads']} thread, {facts['dtype']}{load}"
    return (
        f"{asked} held-out questions a rung. {machine}; torch {facts['torch']}, transformers {facts['transformers']}."
    )


def _table(cells: Sequence[Stored], reasons: list[str]) -> list[str]:
    """One row for each policy and ratio."""
    rows: dict[tuple[str, float | None], dict[str, Stored]] = {}
    for cell in cells:
        rows.setdefault((cell["policy"], cell["ratio"]), {})[cell["what"]] = cell
    order = sorted(rows, key=lambda row: (row[0] != "none", row[0], -(row[1] or 0)))
    lines = [_line(HEAD), "|---" * len(HEAD) + "|"]
    return [*lines, *(_line(_row(name, ratio, rows[name, ratio], reasons)) for name, ratio in order)]


def _row(name: str, ratio: float | None, found: Mapping[str, Stored], reasons: list[str]) -> list[str]:
    asked = "own" if ratio is None else _percent(ratio)
    label = "none (all tokens)" if name == "none" else name
    missing = next((cell for cell in found.values() if "missing" in cell), None)
    if missing is not None:
        return [label, asked, _missing(missing, reasons), *["–"] * (len(HEAD) - 3)]
    scored = [found[rung] for rung in RUNGS if rung in found]
    attained = [
        _percent(sum(cell[column] for cell in scored) / len(scored)) if scored else "not run"
        for column in ("in_prompt", "over_layers")
    ]
    accuracies = [_points(accuracy(found[rung])) if rung in found else "not run" for rung in RUNGS]
    timed = found.get("ttft")
    return [label, asked, *attained, *accuracies, "not run" if timed is None else _times(timed["ttft_ratio"])]


def _missing(cell: Stored, reasons: list[str]) -> str:
    """What stands for a number that cannot be, with the number of its reason."""
    if "why" not in cell:
        return str(cell["missing"])
    why = " ".join(cell["why"].split())
    if why not in reasons:
        reasons.append(why)
    return f"{cell['missing']} [{reasons.index(why) + 1}]"


def accuracy(cell: Stored) -> Interval:
    """Share of right answers. Wilson's interval for as many independent questions as those of few clips are worth."""
    rights, groups = rights_of(cell)
    share, error = sum(rights) / len(rights), clustered_error(rights, groups)
    worth: float = len(rights)
    if not 0 < share < 1:
        worth = len(cell["clips"])  # no spread to tell how alike the answers about a clip are
    elif error > 0:
        worth = share * (1 - share) / error**2
    independent = max(1, int(min(len(rights), worth)))
    return wilson_interval(share * independent, independent)


def rights_of(cell: Stored) -> tuple[list[float], list[int]]:
    """Right (1) or wrong (0), question by question, and which clip each belongs to."""
    rights = [float(mark) for clip in cell["clips"] for mark in clip]
    return rights, [number for number, clip in enumerate(cell["clips"]) for _ in clip]


def _pairs(cells: Cells, models: Sequence[str]) -> list[str]:
    """Each policy beside itself with a frame budget; the difference is of the same questions."""
    head = ("model", "policy", "asked", *(f"{rung}: without → with" for rung in RUNGS), "TTFT ÷ uncompressed")
    lines = []
    for model in models:
        for plain, budgeted in BUDGETED:
            theirs = [cell for cell in cells.values() if cell["model"] == model and cell["policy"] == budgeted]
            for ratio in sorted({cell["ratio"] for cell in theirs if cell["ratio"]}, reverse=True):
                sides = [f"{model} {name} {ratio:g}" for name in (plain, budgeted)]
                lines.append(_line([model, plain, _percent(ratio), *_differences(cells, *sides)]))
    absent = [name for _, name in BUDGETED if name not in {cell["policy"] for cell in cells.values()}]
    table = [_line(head), "|---" * len(head) + "|", *lines, ""] if lines else []
    return [*table, *([f"Not measured: {', '.join(absent)}."] if absent else [])]


def _differences(cells: Cells, plain: str, budgeted: str) -> list[str]:
    found = []
    for rung in RUNGS:
        sides = [cells.get(f"{side} {rung}", {}) for side in (plain, budgeted)]
        found.append(_difference(*sides) if all("clips" in side for side in sides) else _absent(sides))
    clocks = [cells.get(f"{side} ttft", {}) for side in (plain, budgeted)]
    timed = all("policy_ms" in clock for clock in clocks)
    return [*found, " → ".join(f"{clock['ttft_ratio']['value']:.2f}" for clock in clocks) if timed else _absent(clocks)]


def _absent(sides: Sequence[Stored]) -> str:
    return next((str(side["missing"]) for side in sides if "missing" in side), "not run")


def _difference(plain: Stored, budgeted: Stored) -> str:
    (ours, groups), (theirs, _) = rights_of(budgeted), rights_of(plain)
    if [len(clip) for clip in plain["clips"]] != [len(clip) for clip in budgeted["clips"]]:
        return "asked different questions"
    gap = paired_difference([a - b for a, b in zip(ours, theirs, strict=True)], groups).scaled(100)
    shares = [100 * sum(rights) / len(rights) for rights in (theirs, ours)]
    return f"{shares[0]:.1f} → {shares[1]:.1f}, {gap.value:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})"


def _points(share: Interval) -> str:
    return f"{100 * share.value:.1f} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def _times(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"
