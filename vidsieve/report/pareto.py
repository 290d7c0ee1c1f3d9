"""The Pareto picture: what each trial costs in milliseconds and in score, beside target and uncompressed model."""

import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UsageError
from vidsieve.report.drawing import Drawing
from vidsieve.report.marks import INK
from vidsieve.tuner.atomic_files import write_atomically
from vidsieve.tuner.result import TuneResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
PNG_DPI = 150
# text stays text, and names of parts come from their content: the same result gives the same file
SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "vidsieve"}
_SETTINGS_LOCK = threading.Lock()


def pareto_figure(result: TuneResult) -> "Figure":
    """The picture of a search; one that says so where there are no trials. No global state of matplotlib is used."""
    return Drawing(result).figure


def pareto_inline(result: TuneResult) -> str:
    """The picture as an SVG element for a page: no background, text in the colour of the page around it."""
    text = _rendered(result, "svg", background="none").decode("utf-8")
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
    return write_atomically(path, _rendered(result, suffix[1:]), force=force, what="picture")


def _rendered(result: TuneResult, kind: str, background: str = "white") -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if kind == "svg" else {"Software": None}
    # these settings exist as globals only; they are ours for the moment of drawing
    with _SETTINGS_LOCK, rc_context(SETTINGS):
        figure = pareto_figure(result)
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata, facecolor=background)
    return buffer.getvalue()
