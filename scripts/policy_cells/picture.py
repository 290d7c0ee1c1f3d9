"""The headline picture: accuracy over time to the first token, every policy and ratio, one panel a model."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from policy_cells.page import RUNGS, Cells, accuracy
from policy_cells.wanted import MODEL_NAMES
from vidsieve import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.report.pareto import SETTINGS
from vidsieve.report.points import CONTROL_MARKERS, FAINT, INK

CONTROLS = ("random", "uniform-frames")
# Okabe and Ito's colours, which stay apart for the colour-blind; markers tell the same
WHERE: dict[str, tuple[str, str]] = {
    "before the vision tower": ("#009e73", "D"),
    "choose visual tokens": ("#0072b2", "o"),
    "merge visual tokens": ("#e69f00", "s"),
    "inside the language model": ("#cc79a7", "^"),
    "frame budget, then inside": ("#d55e00", "v"),
}
SIZES = {0.5: 8.0, 0.25: 5.5, 0.1: 3.5}
OWN_SIZE = 5.5
PANEL_IN = (4.8, 3.9)


@dataclass(frozen=True)
class Point:
    """One policy at one ratio (None: its own) on one model."""

    policy: str
    ratio: float | None
    ttft_ratio: float
    correct: float


def points_of(cells: Cells, model: str) -> list[Point]:
    """The rows that were scored on every rung and timed; `correct` is the mean over the rungs."""
    rows: dict[tuple[str, float | None], dict[str, Any]] = {}
    for cell in cells.values():
        if cell["model"] == model:
            rows.setdefault((cell["policy"], cell["ratio"]), {})[cell["what"]] = cell
    found = []
    for (policy, ratio), row in rows.items():
        rungs = [row[rung] for rung in RUNGS if "clips" in row.get(rung, {})]
        if policy != "none" and len(rungs) == len(RUNGS) and "ttft_ratio" in row.get("ttft", {}):
            correct = sum(accuracy(cell).value for cell in rungs) / len(rungs)
            found.append(Point(policy, ratio, row["ttft"]["ttft_ratio"]["value"], correct))
    return found


def uncompressed(cells: Cells, model: str) -> float | None:
    """Share of right answers with all tokens, the mean over the rungs."""
    rungs = [cells.get(f"{model} none own {rung}") for rung in RUNGS]
    if any(cell is None for cell in rungs):
        return None
    return sum(accuracy(cell).value for cell in rungs if cell is not None) / len(rungs)


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both, fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ttft_ratio, -point.correct)):
        if not best or point.correct > best[-1].correct:
            best.append(point)
    return best


def where(policy: Policy) -> str:
    """Where a policy acts, by its stages."""
    if policy.layer_stages:
        return "frame budget, then inside" if policy.video_stages else "inside the language model"
    if policy.frame_stages and not policy.video_stages:
        return "before the vision tower"
    return "merge visual tokens" if "merge_tokens" in policy.hooks else "choose visual tokens"


def picture(cells: Cells, models: Sequence[str] = MODEL_NAMES) -> bytes:
    """An SVG whose text is text; the same cells give the same bytes."""
    width, height = PANEL_IN
    figure = Figure(figsize=(width * len(models), height), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        _panel(axes, cells, model)
    panels[0].set_ylabel("right answers, % (mean of three rungs)", color=INK)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    with rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def _panel(axes: Any, cells: Cells, model: str) -> None:
    points = points_of(cells, model)
    kinds: Mapping[str, str] = {name: where(load_policy(name)) for name in {point.policy for point in points}}
    for point in points:
        size = SIZES.get(point.ratio or 0, OWN_SIZE)
        x, y = 100 * point.ttft_ratio, 100 * point.correct
        if point.policy in CONTROLS:
            marker = CONTROL_MARKERS[CONTROLS.index(point.policy)]
            axes.plot(x, y, marker=marker, markersize=size, color=INK, linestyle="none", zorder=3)
            continue
        colour, marker = WHERE[kinds[point.policy]]
        face = "none" if point.ratio is None else colour
        axes.plot(x, y, marker=marker, markersize=size, color=colour, markerfacecolor=face, linestyle="none", alpha=0.8)
    best = front(points)
    line = {"color": FAINT, "linewidth": 1.2, "drawstyle": "steps-post", "zorder": 1}
    axes.plot([100 * point.ttft_ratio for point in best], [100 * point.correct for point in best], **line)
    _name(axes, best)
    whole = uncompressed(cells, model)
    if whole is not None:
        axes.plot(100, 100 * whole, marker="*", markersize=12, color=INK, linestyle="none", zorder=4)
        axes.axhline(100 * whole, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_title(model, fontsize=10, color=INK)
    axes.set_xlabel("time to the first token, % of uncompressed", color=INK)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)


def _name(axes: Any, best: Sequence[Point]) -> None:
    """Write the front's names in the corner that no policy reaches, fast and right, each with a line to its point."""
    for place, point in enumerate(reversed(best)):
        share = "" if point.ratio is None else f" {100 * point.ratio:.0f} %"
        axes.annotate(
            point.policy + share,
            xy=(100 * point.ttft_ratio, 100 * point.correct),
            xytext=(0.02, 0.95 - 0.055 * place),
            textcoords="axes fraction",
            fontsize=7,
            color=INK,
            va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "alpha": 0.7, "shrinkB": 3},
        )


def _legend() -> list[Line2D]:
    none = {"linestyle": "none"}
    kinds = [
        Line2D([], [], color=colour, marker=marker, label=name, **none) for name, (colour, marker) in WHERE.items()
    ]
    controls = [
        Line2D([], [], color=INK, marker=marker, label=f"control: {name}", **none)
        for name, marker in zip(CONTROLS, CONTROL_MARKERS, strict=False)
    ]
    sizes = [
        Line2D([], [], color=FAINT, marker="o", markersize=size, label=f"{100 * ratio:.0f} % of the tokens", **none)
        for ratio, size in SIZES.items()
    ]
    own = Line2D([], [], color=FAINT, marker="o", markerfacecolor="none", label="its file's own count", **none)
    star = Line2D([], [], color=INK, marker="*", markersize=10, label="uncompressed", **none)
    return [*kinds, *controls, *sizes, own, star]
