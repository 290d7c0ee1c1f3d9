"""Which files a view can be written to; checked before a model is loaded."""

from pathlib import Path

from vidsieve.framework.errors import UsageError
from vidsieve.tuner.atomic_files import check_output

SUFFIXES = (".html", ".png", ".mp4")


def check_view_output(path: str | Path, *, force: bool = False) -> Path:
    """Refuse a file that could not be written at the end. Raises UsageError."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise UsageError(f"`out` {path}: must end in {known}, got {suffix or 'no ending'!r}.")
    return check_output(path, force=force)
