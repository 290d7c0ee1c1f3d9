"""Model adapters: one file per family in `families`, and the machinery that carries a policy's plans out on a model.

Importing this room, and reading what the adapters say of themselves, imports neither torch nor transformers.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from vidsieve.adapters import families
from vidsieve.framework.hookspecs import hookimpl


@hookimpl
def register_models(register: Callable[[str, Any], None]) -> None:
    """Offer every family that has a file in `families`."""
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        adapter = importlib.import_module(module.name).ADAPTER
        register(adapter.family, adapter)
