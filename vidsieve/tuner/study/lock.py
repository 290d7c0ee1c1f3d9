"""One tuner a study: a file lock that the system lets go of when its holder dies, however it dies."""

import contextlib
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from vidsieve.framework.errors import TuneError


class StudyLock:
    """Holds `<study>.lock` from construction to `release`; `<study>.holder` tells others who has it.

    Raises:
        TuneError: another process holds it (the message says which), or the folder cannot be written to.
    """

    def __init__(self, study: Path) -> None:
        if not study.parent.is_dir():
            raise TuneError(f"study {study}: the folder {study.parent} does not exist. Make it first.")
        self._holder = study.with_name(f"{study.name}.holder")
        self._lock = FileLock(study.with_name(f"{study.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise TuneError(
                f"study {study}: {self._told()} is working on it. Wait for it, stop it, or name another `study`."
            ) from None
        except OSError as error:
            raise TuneError(f"study {study}: cannot be locked: {error.strerror or error}.") from None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": platform.node(), "since": now}
        # who holds it is a courtesy: a full disk must not keep the holder from working
        with contextlib.suppress(OSError):
            self._holder.write_text(json.dumps(about), encoding="utf-8")

    def _told(self) -> str:
        """The holder in words, as far as it is known."""
        try:
            about = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"another tuner (process {about['pid']} on {about['host']}, since {about['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another tuner"

    def release(self) -> None:
        """Let others in."""
        with contextlib.suppress(OSError):
            self._holder.unlink()
        self._lock.release()
