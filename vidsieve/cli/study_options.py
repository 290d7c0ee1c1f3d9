"""The options that say where a search is kept and who works on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vidsieve.cli.options import option
from vidsieve.framework.errors import UsageError

_STUDY = "Study"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Where the search is kept and who works on it.

    Raises:
        UsageError: options that exclude each other.
    """

    devices: Annotated[
        str | None,
        option("--devices", _STUDY, "Search on several alike devices at once, such as cuda:0,cuda:1.", "LIST"),
    ] = None
    in_process: Annotated[
        bool,
        option("--in-process", _STUDY, "Evaluate in this process, where a crash ends the search, instead of a child."),
    ] = False
    study: Annotated[
        Path | None,
        option("--study", _STUDY, "The file that keeps the search and resumes it.  (default: beside --out, .study.db)"),
    ] = None
    fresh: Annotated[bool, option("--fresh", _STUDY, "Set an existing study aside and start anew.")] = False
    storage: Annotated[
        str | None,
        option("--storage", _STUDY, "A server that several machines share, instead of a file.", "URL"),
    ] = None
    study_name: Annotated[str, option("--study-name", _STUDY, "The search's name on that server.")] = "vidsieve"
    join: Annotated[
        bool, option("--join", _STUDY, "Add trials to the search on --storage; who started it writes the policy.")
    ] = False

    def __post_init__(self) -> None:
        if self.study is not None and self.storage is not None:
            raise UsageError("--study and --storage: exclude each other; give one of them.")
        if self.devices is not None and self.in_process:
            raise UsageError("--devices and --in-process: exclude each other; each device has a process of its own.")
        if self.storage is not None and "://" not in self.storage:
            raise UsageError(
                f"--storage {self.storage}: must be a URL, such as postgresql://user@host/base; a file goes to --study."
            )
        if self.fresh and self.storage is not None:
            raise UsageError("--fresh: sets a file aside; on --storage choose another --study-name instead.")

    def device_list(self, device: str | None) -> list[str] | None:
        """The devices asked for, or None for the usual one. Raises UsageError for a list that makes no sense."""
        if self.devices is None:
            return None
        if device is not None:
            raise UsageError("--device and --devices: exclude each other; give one of them.")
        names = [name.strip() for name in self.devices.split(",") if name.strip()]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"--devices: expected different devices, such as cuda:0,cuda:1, got {self.devices!r}.")
        return names

    def place(self, out: Path) -> Path | str:
        """Where the study lives."""
        if self.storage is not None:
            return self.storage
        return (self.study or out.with_name(f"{out.stem}.study.db")).expanduser()
