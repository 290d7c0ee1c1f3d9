"""Importing a lone plugin file, and saying where in it something went wrong."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from vidsieve.framework.errors import PluginError


def file_of(plugin: Any) -> Path | None:
    """The file a module came from."""
    file = getattr(plugin, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


@contextmanager
def named_after(name: str) -> Iterator[None]:
    """Turn what a plugin raises into a PluginError that names it and the line."""
    try:
        yield
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {_place(name, error)}: failed to register: {_told(error)}.") from error


def import_file(file: Path) -> ModuleType:
    """Import a file under a name of its own; a failure says where in the file."""
    name = f"vidsieve_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {file}: not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"plugin {_place(str(file), error)}: failed to import: {_told(error)}.") from error
    return module


def _place(file: str, error: BaseException) -> str:
    """`file:line` of the last line of `file` that took part in the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    return f"{file}:{lines[-1]}" if lines and lines[-1] else file


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")
