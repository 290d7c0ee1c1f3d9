"""The Pareto picture: what each trial costs in milliseconds and in score, with target and uncompressed model."""

import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UsageError
from vidsieve.report.number_format import plain
from vidsieve.report.points import (
    CONTROL_MARKERS,
    FAINT,
    INK,
    Mark,
    Point,
    baseline_ms,
    chosen_trial,
    front,
    marks_of,
    metric_of,
    most_telling,
    points_of,
)
from vidsieve.tuner.atomic_files import write_atomically
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.statistics import ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SUFFIXES = (".svg", ".png")
PNG_DPI = 150
# text stays text, and names of parts come from their content: the same result gives the same file
SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "vidsieve"}
_SETTINGS_LOCK = threading.Lock()


def pareto_figure(result: TuneResult) -> "Figure":
    """Draw the picture of a search, or that there are no trials. No global state of matplotlib is used."""
    return Drawing(result).figure


def pareto_inline(result: TuneResult) -> str:
    """Draw the picture as an SVG element for a page: no background, text in the colour of the page around it."""
    text = rendered(lambda: pareto_figure(result), "svg", background="none").decode("utf-8")
    return text[text.index("<svg") :].replace(INK, "currentColor")


def write_pareto(result: TuneResult, path: str | Path, *, force: bool = False) -> Path:
    """Write the picture as .svg or .png, whole or not at all.

    Raises:
        UsageError: another suffix; the file exists and `force` is not given; its folder cannot be written to.
        TuneError: the disk refused.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"picture {path}: must end in {' or '.join(SUFFIXES)}, got {suffix or 'no ending'!r}.")
    return write_atomically(path, rendered(lambda: pareto_figure(result), suffix[1:]), force=force, what="picture")


def rendered(draw: "Callable[[], Figure]", kind: str, background: str = "white") -> bytes:
    """Return a figure as a file of this kind ("svg" or "png"); the same figure gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {"Software": None}
    # these settings exist as globals only; they are ours for the moment of drawing
    with _SETTINGS_LOCK, rc_context(SETTINGS):
        figure = draw()
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata, facecolor=background)
    return buffer.getvalue()


METRICS = {"ttft": "time to first token", "e2e": "file to last token"}
MOST_TRIALS = 400
WIDTH_IN, PLOT_HEIGHT_IN, ROW_HEIGHT_IN = 6.4, 3.6, 0.2
LEGEND_COLUMNS = 3
FAR = 1.0
"""What lies more than this many times the trials' span away from them is marked at the edge, or in its own panel."""
MARGIN = 0.12
SMALL, NORMAL, BIG = 3.5, 7.0, 13.0


class Drawing:
    """Build `figure`: a panel of trials, and one at its right for an uncompressed model far away from them."""

    def __init__(self, result: TuneResult) -> None:
        from matplotlib.figure import Figure

        self._result = result
        self._baseline = baseline_ms(result)
        self._points = points_of(most_telling(result.trials, MOST_TRIALS))
        self._handles: list[Any] = []
        self.figure = Figure(figsize=(WIDTH_IN, PLOT_HEIGHT_IN), layout="constrained", facecolor="none")
        if self._points:
            self._draw()
        else:
            self._say_nothing()

    def _say_nothing(self) -> None:
        """Write that no trial was timed."""
        text = "No trial was timed: there is nothing to draw."
        self.figure.text(0.5, 0.5, text, ha="center", va="center", color=INK, fontsize=11)

    def _draw(self) -> None:
        self._main, self._star_panel = self._panels()
        marks = marks_of(self._result)
        for name, mark in marks.items():
            self._trials([point for point in self._points if point.policy == name], name, mark)
        self._front()
        self._mark_target()
        self._uncompressed()
        self._ring()
        self._heldout()
        self._kinds()
        self._dress()

    def _panels(self) -> tuple[Any, Any]:
        """Make the panel of trials and the one of the uncompressed model; often the same."""
        at = [point.latency_ms for point in self._points] + self._heldout_ms()
        low, high = min(at), max(at)
        span = max(high - low, 0.05 * high)
        marks = (self._result.target_ms, self._baseline)
        near = [mark for mark in marks if mark is not None and _distance(mark, low, high) <= FAR * span]
        left_ms, right_ms = min([low, *near]) - MARGIN * span, max([high, *near]) + MARGIN * span
        if self._baseline is None or self._baseline <= right_ms:
            axes = self.figure.add_subplot()
            axes.set_xlim(left_ms, right_ms)
            return axes, axes
        left, right = self.figure.subplots(1, 2, sharey=True, width_ratios=[6, 1])
        left.set_xlim(left_ms, right_ms)
        right.set_xlim(0.97 * self._baseline, 1.03 * self._baseline)
        right.set_xticks([self._baseline], [ms(self._baseline)])
        left.spines["right"].set_visible(False)
        right.spines["left"].set_visible(False)
        right.tick_params(left=False)
        self._break(left, 1.0)
        self._break(right, 0.0)
        return left, right

    def _break(self, axes: Any, at: float) -> None:
        """Draw slanted strokes where the axis is broken."""
        mark = {
            "marker": [(-0.6, -1), (0.6, 1)],
            "markersize": 8,
            "linestyle": "none",
            "color": FAINT,
            "clip_on": False,
        }
        axes.plot([at], [0], transform=axes.transAxes, **mark)

    def _trials(self, points: Sequence[Point], name: str, mark: Mark) -> None:
        """Draw one policy: filled where it fits, hollow where it does not, small where it was stopped early."""
        hollow = {"markerfacecolor": "none", "markeredgecolor": mark.colour, "markersize": NORMAL}
        styles: dict[str, dict[str, Any]] = {
            "fits": {"color": mark.colour, "markersize": NORMAL},
            "pruned": {"color": mark.colour, "markersize": SMALL},
            "misses": hollow,
        }
        line = {"marker": mark.marker, "linestyle": "none"}
        for kind, style in styles.items():
            chosen = [point for point in points if point.kind == kind]
            if chosen:
                x, y = [p.latency_ms for p in chosen], [p.change_points for p in chosen]
                self._main.plot(x, y, zorder=3, **line, **style)
        unscored = [point.latency_ms for point in points if point.kind == "unscored"]
        if unscored:
            place = self._main.get_xaxis_transform()
            self._main.plot(unscored, [0.03] * len(unscored), transform=place, zorder=3, **line, **hollow)
        if points:
            self._name(plain(name, 32) or "no name", color=mark.colour, markersize=NORMAL, **line)

    def _name(self, label: str, **style: Any) -> None:
        """Add an entry to the legend."""
        from matplotlib.lines import Line2D

        self._handles.append((Line2D([], [], **style), label))

    def _front(self) -> None:
        best = front(self._points)
        if len(best) > 1:
            x, y = [p.latency_ms for p in best], [p.change_points for p in best]
            style = {"color": FAINT, "linewidth": 1.4}
            self._main.plot(x, y, drawstyle="steps-post", zorder=2, **style)
            self._name("Pareto front", **style)

    def _mark_target(self) -> None:
        """Draw the target as a line, or as an arrow at the edge beyond which it lies."""
        style = {"color": INK, "linewidth": 1.0, "linestyle": (0, (4, 3))}
        label = f"target {ms(self._result.target_ms)} ms"
        if self._at_edge(self._result.target_ms, label, height=0.96):
            return
        self._main.axvline(self._result.target_ms, zorder=1, **style)
        self._name(label, **style)

    def _at_edge(self, latency_ms: float, label: str, height: float) -> bool:
        """Mark a latency outside the picture with an arrow at its edge, `height` up; False where it is inside."""
        low, high = self._main.get_xlim()
        if low <= latency_ms <= high:
            return False
        right = latency_ms > high
        self._main.annotate(
            f"{label} \u2192" if right else f"\u2190 {label}",
            xy=(1.0 if right else 0.0, height),
            xytext=(-16 if right else 16, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            color=INK,
            fontsize=8.5,
            arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0},
            zorder=6,
        )
        return True

    def _uncompressed(self) -> None:
        for axes in {id(panel): panel for panel in (self._main, self._star_panel)}.values():
            axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        if self._baseline is not None:
            label = f"uncompressed {ms(self._baseline)} ms"
            if self._star_panel is self._main and self._at_edge(self._baseline, label, height=0.9):
                return
            style = {"marker": "*", "markersize": BIG, "color": INK, "linestyle": "none"}
            self._star_panel.plot([self._baseline], [0], zorder=4, **style)
            self._name(label, **style)

    def _ring(self) -> None:
        trial = chosen_trial(self._result)
        if trial is None or trial.latency is None or trial.change_points is None:
            return
        style = {"marker": "o", "markersize": BIG, "linestyle": "none"}
        style |= {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6}
        self._main.plot([trial.latency.value], [trial.change_points], zorder=5, **style)
        self._name(f"chosen (trial {trial.number})", **style)

    def _heldout_ms(self) -> list[float]:
        """Collect latencies of the policy and the controls that are drawn by their held-out accuracy."""
        result, base = self._result, self._baseline
        if result.accuracy is None or result.latency is None or base is None:
            return []
        controls = [control.latency for control in result.controls if control.accuracy is not None]
        return [latency.ratio.value * base for latency in (result.latency, *controls) if latency is not None]

    def _heldout(self) -> None:
        """Draw winner and controls by their held-out results: these are accuracies."""
        result, base = self._result, self._baseline
        if result.accuracy is None or result.latency is None or base is None:
            return
        metric = result.accuracy.metric
        change = result.accuracy.difference.scaled(100)
        errors = [[max(0.0, change.value - change.low)], [max(0.0, change.high - change.value)]]
        style = {"marker": ".", "markersize": NORMAL, "color": INK, "linestyle": "none"}
        at = result.latency.ratio.value * base
        self._main.errorbar([at], [change.value], yerr=errors, ecolor=INK, elinewidth=1.0, capsize=3, zorder=4, **style)
        self._name(f"chosen, held-out {metric}", **style)
        for index, control in enumerate(result.controls):
            if control.latency is None or control.accuracy is None:
                continue
            lost = 100 * (control.accuracy.value - result.accuracy.baseline.value)
            style = {"marker": CONTROL_MARKERS[index % len(CONTROL_MARKERS)], "markersize": NORMAL + 1}
            style |= {"color": INK, "markeredgewidth": 1.5, "linestyle": "none"}
            self._main.plot([control.latency.ratio.value * base], [lost], zorder=4, **style)
            self._name(f"{plain(control.name, 24)}, held-out", **style)

    def _kinds(self) -> None:
        """Explain hollow and small marks, where they occur."""
        kinds = {point.kind for point in self._points}
        hollow = {"marker": "o", "markersize": NORMAL, "markerfacecolor": "none", "markeredgecolor": FAINT}
        if "misses" in kinds:
            self._name("too slow or inaccurate", linestyle="none", **hollow)
        if "unscored" in kinds:
            self._name("at the edge: not scored", linestyle="none", **hollow)
        if "pruned" in kinds:
            self._name("stopped early", marker="o", markersize=SMALL, color=FAINT, linestyle="none")

    def _dress(self) -> None:
        """Set axes, labels and legend."""
        metric = metric_of(self._result)
        scorer = next((trial.scorer for trial in self._result.trials), "")
        of = "p(gold answer)" if scorer == "p_gold" else "right answers"
        self._main.set_xlabel(f"{METRICS.get(metric, metric)}, ms (median)", color=INK, fontsize=9.5)
        label = f"{of} minus uncompressed, points\nsearch examples choose: no accuracy claim"
        self._main.set_ylabel(label, color=INK, fontsize=9.5)
        for axes in self.figure.axes:
            axes.set_facecolor("none")
            axes.tick_params(colors=INK, labelsize=9)
            axes.margins(x=0.06, y=0.1)
            axes.spines[["top", "right"]].set_visible(False)
            for spine in axes.spines.values():
                spine.set_color(FAINT)
        handles, labels = [handle for handle, _ in self._handles], [label for _, label in self._handles]
        rows = -(-len(handles) // LEGEND_COLUMNS)
        self.figure.set_figheight(PLOT_HEIGHT_IN + ROW_HEIGHT_IN * rows)
        legend = self.figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=LEGEND_COLUMNS,
            fontsize=8.5,
            frameon=False,
            labelcolor=INK,
        )
        for text in legend.get_texts():
            # a name with dollar signs is a name, no formula
            text.set_parse_math(False)


def _distance(value: float, low: float, high: float) -> float:
    """Compute how far outside `low` to `high` a value lies; 0 inside."""
    return max(low - value, value - high, 0.0)
