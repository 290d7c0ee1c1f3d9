"""Write result files atomically, and over an existing file only with `force`."""

import contextlib
import os
import secrets
from pathlib import Path

from vidsieve.framework.errors import TuneError, UsageError


def check_output(path: str | Path, *, force: bool = False, what: str = "`out`") -> Path:
    """Refuse an output path that could not be written at the end; call it before the first trial.

    `what` is how messages call it.

    Raises:
        UsageError: it exists and `force` is not given, it is a folder, or its folder is missing or not writable.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UsageError(f"{what} {path}: is a folder; name a file, such as {path / 'policy.yaml'}.")
    if path.exists() and not force:
        raise UsageError(f"{what} {path}: exists already. Give `force` to replace it, or another name.")
    if not path.parent.is_dir():
        raise UsageError(f"{what} {path}: the folder {path.parent} does not exist. Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{what} {path}: the folder {path.parent} cannot be written to.")
    return path


def write_atomically(path: str | Path, content: str | bytes, *, force: bool = False, what: str = "`out`") -> Path:
    """Write `content` to a temporary file, flush it to disk, then rename it to `path` in one step.

    Text is written as UTF-8. `what` is how messages call the file.

    Raises:
        UsageError: see `check_output`; also if the file came into being meanwhile.
        TuneError: the disk refused (full, read-only); nothing is left behind.
    """
    path = check_output(path, force=force, what=what)
    try:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            _give_name(temporary, path, force)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        _sync_folder(path.parent)
    except FileExistsError:
        raise UsageError(f"{what} {path}: exists already. Give `force` to replace it, or another name.") from None
    except OSError as error:
        raise TuneError(f"{what} {path}: could not be written: {error.strerror or error}.") from error
    return path


def _give_name(temporary: Path, path: Path, force: bool) -> None:
    """Rename, or link, which fails where the name is taken. Raises FileExistsError."""
    if force:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # a file system without hard links: check once more, then rename
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that the new name is durable where the system allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
