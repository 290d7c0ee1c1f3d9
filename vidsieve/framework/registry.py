"""Finding plugins: installed packages (entry points), lone files, and objects registered from Python."""

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from vidsieve.framework.errors import PluginError, UnknownNameError
from vidsieve.framework.hookspecs import PROJECT, PluginSpecs

if TYPE_CHECKING:
    from vidsieve.framework.stage import Stage

_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")


class Registry:
    """Stages, published policies and model adapters by name. Nothing is imported before it is asked for."""

    def __init__(self, *, installed: bool = True) -> None:
        self._installed = installed
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(PluginSpecs)
        self._discovered = False
        self._asked: set[tuple[str, str]] = set()
        self._tables: dict[str, dict[str, Any]] = {"stage": {}, "policy": {}, "model": {}}
        self._origin: dict[tuple[str, str], str] = {}
        self.failures: dict[str, str] = {}

    @property
    def stages(self) -> "dict[str, type[Stage]]":
        """Stage classes by name."""
        return self._table("stage", "register_stages")

    @property
    def policies(self) -> dict[str, Path]:
        """Paths of published policy files by name."""
        return self._table("policy", "register_policies")

    @property
    def models(self) -> dict[str, Any]:
        """Model adapters by family."""
        return self._table("model", "register_models")

    def origin(self, kind: str, name: str) -> str:
        """Which plugin registered `name`."""
        return self._origin.get((kind, name), "unknown")

    def find(self, kind: str, name: str, where: str) -> Any:
        """The entry of `kind` ("stage", "policy", "model") called `name`.

        Raises:
            UnknownNameError: with the nearest name, and any plugin that failed to import.
        """
        table: dict[str, Any] = getattr(self, {"stage": "stages", "policy": "policies", "model": "models"}[kind])
        if name in table:
            return table[name]
        broken = "".join(f" (plugin {plugin} could not be imported: {why})" for plugin, why in self.failures.items())
        raise UnknownNameError(f"{where}{broken}", kind, name, table)

    def register(self, name: str, value: "type[Stage] | Path", *, origin: str = "this process") -> None:
        """Add a stage class or the path of a policy file from Python.

        Registering a class of the same qualified name again replaces it (a notebook cell run twice).
        """
        kind = "policy" if isinstance(value, str | Path) else "stage"
        self._add(kind, name, Path(value) if isinstance(value, str | Path) else value, origin)

    def add_file(self, path: str | Path) -> None:
        """Load a lone plugin file. A file that is already loaded, also as part of a package, is not loaded twice.

        Raises:
            PluginError: no such file, it raises on import, or it registers nothing.
        """
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise PluginError(
                f"plugin {path}: no such file. Give the path of a Python file with register_stages in it."
            )
        self._discover()
        if any(
            Path(getattr(plugin, "__file__", None) or "").resolve() == file for plugin in self._manager.get_plugins()
        ):
            return
        module = _import_file(file)
        if not any(
            callable(getattr(module, name, None))
            for name in ("register_stages", "register_policies", "register_models")
        ):
            raise PluginError(
                f"plugin {path}: registers nothing. Add a function register_stages(register) marked with @hookimpl."
            )
        self._manager.register(module, name=str(file))
        self._manager.check_pending()

    def add_module(self, module: ModuleType) -> None:
        """Register a plugin module from Python; the same module twice is one."""
        self._discover()
        if not self._manager.is_registered(module):
            self._manager.register(module, name=module.__name__)

    def _discover(self) -> None:
        if self._discovered or not self._installed:
            return
        self._discovered = True
        # our own two entries first, so that a stranger cannot shadow a built-in name
        found = sorted(entry_points(group=PROJECT), key=lambda e: (not e.value.startswith("vidsieve."), e.value))
        for entry in found:
            if self._manager.has_plugin(entry.value):
                continue
            try:
                self._manager.register(entry.load(), name=entry.value)
            except Exception as error:
                self.failures[entry.value] = f"{type(error).__name__}: {error}"

    def _table(self, kind: str, hook: str) -> dict[str, Any]:
        self._discover()
        for plugin_name, plugin in self._manager.list_name_plugin():
            if plugin is None or (plugin_name, hook) in self._asked:
                continue
            self._asked.add((plugin_name, hook))
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            self._manager.subset_hook_caller(hook, others)(register=self._adder(kind, plugin_name))
        return self._tables[kind]

    def _adder(self, kind: str, origin: str) -> Callable[..., None]:
        if kind == "policy":
            return lambda path: self._add("policy", Path(path).stem, Path(path), origin)
        return lambda name, value: self._add(kind, name, value, origin)

    def _add(self, kind: str, name: str, value: Any, origin: str) -> None:
        where = f"plugin {origin}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(
                f"{where}: {kind} name {name!r} must be lower case words joined by '.', '-' or '_' ('feature-norm')."
            )
        if kind == "stage":
            from vidsieve.framework.stage import Stage

            if not (isinstance(value, type) and issubclass(value, Stage)):
                raise PluginError(f"{where}: stage {name!r} must be a subclass of Stage, got {value!r}.")
        table = self._tables[kind]
        if name in table and table[name] is not value and not _same(table[name], value):
            raise PluginError(
                f"{where}: {kind} {name!r} is already registered by {self.origin(kind, name)}; choose another name."
            )
        table[name] = value
        self._origin[kind, name] = origin


def _same(old: Any, new: Any) -> bool:
    """Whether two entries are the same thing seen twice: one path, or one class defined again in place."""
    if isinstance(old, type) and isinstance(new, type):
        return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return isinstance(old, Path) and isinstance(new, Path) and old.resolve() == new.resolve()


def _import_file(file: Path) -> ModuleType:
    """Import a file under a name of its own; a failure says where in the file."""
    name = f"vidsieve_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {file}: not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
        place = f"{file}:{line}" if line else str(file)
        raise PluginError(f"plugin {place}: failed to import: {type(error).__name__}: {error}.") from error
    return module


@lru_cache(maxsize=1)
def default() -> Registry:
    """The registry of this process."""
    return Registry()


def register(name: str, value: "type[Stage] | Path") -> None:
    """Add a stage class, or the path of a policy file, to the registry of this process."""
    default().register(name, value)
