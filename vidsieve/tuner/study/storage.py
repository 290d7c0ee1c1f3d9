"""Open and lock a study's storage, and turn errors of disk, database and server into sentences."""

import contextlib
import json
import os
import platform
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from vidsieve.framework.errors import TuneError, UsageError, VidsieveError
from vidsieve.tuner.trial_failure import StudyFailedError

T = TypeVar("T")
BUSY_SECONDS = 60
PAUSES_S = (0.5, 2.0, 8.0)
SQLITE = "sqlite:///"


def open_storage(place: Any) -> Any:
    """Open the Optuna storage of a path (SQLite) or URL (`sqlite:///`, `postgresql://`, `grpc://host:port`).

    Raises:
        UsageError: a URL of an engine that is not installed or not known.
        TuneError: the file or the server refused.
    """
    import optuna

    if place is None or not isinstance(place, str | Path):
        return place
    url = f"{SQLITE}{place}" if isinstance(place, Path) else place
    with storage_errors(place):
        if url.startswith("grpc://"):
            return _grpc(url)
        if "://" not in url:
            raise UsageError(
                f"`storage` {url}: must be a URL, such as postgresql+psycopg://user@host/base or grpc://host:port."
            )
        # one process writes a SQLite file, but a dashboard may be reading it: wait for it instead of losing a trial
        options = {"connect_args": {"timeout": BUSY_SECONDS}} if url.startswith(SQLITE) else {"pool_pre_ping": True}
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options, skip_compatibility_check=False)
        except ImportError as error:
            raise UsageError(f"`storage` {url.split('://')[0]}: its driver is not installed ({error}).") from None
        except Exception as error:
            if type(error).__name__ in ("NoSuchModuleError", "ArgumentError"):
                raise UsageError(f"`storage` {without_password(url)}: no such engine: {first_line(error)}.") from None
            raise


def without_password(place: Any) -> str:
    """Write a storage's place for messages, without the password of its URL."""
    return re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", str(place))


def sqlite_path(place: Any) -> Path | None:
    """Return the SQLite file of a storage; None for memory, servers and storage objects."""
    if isinstance(place, Path):
        return place
    if isinstance(place, str) and place.startswith(SQLITE):
        return Path(place.removeprefix(SQLITE))
    return None


def _grpc(url: str) -> Any:
    """Connect to a storage server that Optuna runs elsewhere."""
    from optuna.storages import GrpcStorageProxy

    host, _, port = url.removeprefix("grpc://").rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"`storage` {url}: expected grpc://host:port.")
    try:
        proxy = GrpcStorageProxy(host=host, port=int(port))
        proxy.wait_server_ready(timeout=10)
    except ImportError as error:
        raise UsageError(f"`storage` {url}: gRPC is not installed ({error}). pip install grpcio protobuf.") from None
    except Exception as error:
        raise TuneError(f"`storage` {url}: no storage server answers there: {first_line(error)}.") from None
    return proxy


@contextmanager
def storage_errors(place: Any) -> Iterator[None]:
    """Turn what a storage raises into a StudyFailedError that says what happened to the file and what to do."""
    import optuna

    try:
        yield
    except VidsieveError:
        raise
    except (optuna.exceptions.StorageInternalError, sqlite3.Error) as error:
        raise StudyFailedError(_sentence(place, error)) from None
    except RuntimeError as error:
        # what Optuna says of a table made by another version
        if "version" not in str(error).lower():
            raise
        raise StudyFailedError(
            f"study {without_password(place)}: was made by another version of Optuna: {first_line(error)}."
        ) from None
    except Exception as error:
        if _sql_cause(error) is None and not _of_grpc(error):
            raise
        raise StudyFailedError(_sentence(place, error)) from None


def with_retries(work: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Do `work`, again after a pause where a storage is busy or away. The last failure is raised."""
    for pause_s in PAUSES_S:
        try:
            return work()
        except Exception as error:
            if not _passing(error):
                raise
            sleep(pause_s)
    return work()


def _passing(error: BaseException) -> bool:
    """Whether trying again may help: a lock, or a server that does not answer."""
    text = _all_text(error)
    return "locked" in text or "unavailable" in text or "inactiverpcerror" in text or "connection" in text


def _sentence(place: Any, error: BaseException) -> str:
    text, place = _all_text(error), without_password(place)
    resume = "Nothing that was finished is lost: run the same command again"
    if _of_grpc(error):
        return f"study {place}: the storage server no longer answers ({_grpc_reason(error)}). Start it again. {resume}."
    if "disk is full" in text or "no space left" in text or "disk i/o" in text:
        return f"study {place}: the disk is full. Make room. {resume}."
    if "locked" in text:
        return f"study {place}: another program has kept it locked for {BUSY_SECONDS} s. Close it. {resume}."
    if "readonly" in text or "unable to open" in text or "permission" in text:
        return f"study {place}: cannot be written to. Name another `study`."
    if "not a database" in text or "malformed" in text:
        return f"study {place}: is no study file, or a damaged one. Name another `study`, or start anew with `fresh`."
    return f"study {place}: the storage failed: {first_line(_sql_cause(error) or error)}. {resume}."


def _sql_cause(error: BaseException) -> BaseException | None:
    """Find the database's own error in the chain of causes, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, sqlite3.Error) or type(seen).__module__.startswith("sqlalchemy"):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _of_grpc(error: BaseException) -> bool:
    """Whether a gRPC channel raised it; found by name, as gRPC need not be installed."""
    return any(kind.__module__.partition(".")[0] == "grpc" for kind in type(error).__mro__)


def _grpc_reason(error: Any) -> str:
    """Return gRPC's code and details, where it gives them."""
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    parts = [code().name.lower() if callable(code) and code() else "", details() if callable(details) else ""]
    return ": ".join(part for part in parts if part) or first_line(error)


def _all_text(error: BaseException) -> str:
    """Join the messages and kinds of an error and of its causes, in lower case."""
    parts, seen = [], error
    while seen is not None:
        parts.append(f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
    return "\n".join(parts).lower()


def first_line(error: BaseException) -> str:
    """Return the first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class StudyLock:
    """Lock `<study>.lock` from construction to `release`; `<study>.holder` names the process that has it.

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
                f"study {study}: {self._holder_words()} is working on it. Wait for it, stop it, or name "
                "another `study`."
            ) from None
        except OSError as error:
            raise TuneError(f"study {study}: cannot be locked: {error.strerror or error}.") from None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": platform.node(), "since": now}
        # who holds it is a courtesy: a full disk must not keep the holder from working
        with contextlib.suppress(OSError):
            self._holder.write_text(json.dumps(about), encoding="utf-8")

    def _holder_words(self) -> str:
        """Name the process that has the lock, as far as it is known."""
        try:
            about = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"another tuner (process {about['pid']} on {about['host']}, since {about['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another tuner"

    def release(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):
            self._holder.unlink()
        self._lock.release()
