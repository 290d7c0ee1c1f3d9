"""The built-in stages, one method a file, and the published policies.

Every stage file is written as a stranger's plugin would be: it ends with its own `register_stages`. This
package finds those files by itself, so that adding a stage is adding a file.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

from vidsieve.framework.hookspecs import hookimpl

PUBLISHED = Path(__file__).parent / "published"


@hookimpl
def register_stages(register: Callable[[str, type], None]) -> None:
    """Offer the stages of every module here; what methods share lives in a package beside them."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        if not module.ispkg:
            importlib.import_module(f"{__name__}.{module.name}").register_stages(register)


@hookimpl
def register_policies(register: Callable[[Path], None]) -> None:
    """Offer every YAML file in `published`."""
    for path in sorted(PUBLISHED.glob("*.yaml")):
        register(path)
