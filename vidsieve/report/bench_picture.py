"""The picture of a benchmark: for each policy a bar of what its request takes, part by part."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UsageError
from vidsieve.report.bench_tables import PARTS, name_of
from vidsieve.report.pareto import SUFFIXES, rendered
from vidsieve.report.points import FAINT, INK
from vidsieve.tuner.atomic_files import check_output, write_atomically
from vidsieve.tuner.statistics import ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHAT = "`picture`"
WIDTH_IN, ROW_IN, FRAME_IN = 8.0, 0.3, 1.1
COLOURS = ("#bbbbbb", "#999999", "#4477aa", "#cc3311", "#228833", "#ccbb44", "#e8e8e8")
"""Of the parts, in their order: colours that colour-blind people tell apart (Paul Tol's)."""


def check_bench_picture(path: str | Path, *, force: bool = False) -> Path:
    """Refuse, before anything is measured, a file that could not be written. Raises UsageError."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(f"{WHAT} {path}: must end in {' or '.join(SUFFIXES)}.")
    return check_output(path, force=force, what=WHAT)


def write_bench_picture(result: Mapping[str, Any], path: str | Path, *, force: bool = False) -> Path:
    """Write the picture as .svg or .png, whole or not at all. Raises as `check_bench_picture` does."""
    path = check_bench_picture(path, force=force)
    drawn = rendered(lambda: bench_figure(result), path.suffix.lower()[1:])
    return write_atomically(path, drawn, force=force, what=WHAT)


def bench_figure(result: Mapping[str, Any]) -> "Figure":
    """Draw a panel for each number of frames. No global state of matplotlib is used."""
    from matplotlib.figure import Figure

    works = [work for work in result["workloads"] if any("parts_ms" in cell for cell in work["cells"])]
    rows = [sum("parts_ms" in cell for cell in work["cells"]) for work in works]
    height = FRAME_IN * max(1, len(works)) + ROW_IN * sum(rows) + 0.8
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    if not works:
        figure.text(0.5, 0.5, "Nothing was timed: there is nothing to draw.", ha="center", color=INK)
        return figure
    panels = figure.subplots(len(works), 1, squeeze=False, height_ratios=rows)
    for axes, work in zip(panels[:, 0], works, strict=True):
        _panel(axes, work)
    about = result["about"]
    title = f"{result['model'].partition(':')[0]}\n{about['device_name']}, {about['dtype']}, {about['attn']}"
    figure.suptitle(title, fontsize=9, color=INK)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    return figure


def _panel(axes: Any, work: Mapping[str, Any]) -> None:
    cells = [cell for cell in work["cells"] if "parts_ms" in cell]
    places, left = range(len(cells)), [0.0] * len(cells)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        widths = [max(0.0, cell["parts_ms"][f"{part}_ms"]) for cell in cells]
        axes.barh(places, widths, left=left, color=colour, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, cell, end in zip(places, cells, left, strict=True):
        ratio = cell.get("ratios", {}).get("ttft")
        told = f"  TTFT {ms(cell['measures']['ttft_ms']['value'])} ms"
        axes.text(end, place, told + (f", {ratio['value']:.2f}" if ratio else ""), va="center", fontsize=8, color=INK)
    axes.set_yticks(list(places), [name_of(cell) for cell in cells], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(left))
    axes.set_title(f"{work['frames']} frames", fontsize=9, loc="left", color=INK)
    axes.set_xlabel("milliseconds of a whole request", fontsize=8)
    axes.tick_params(labelsize=8, color=FAINT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
