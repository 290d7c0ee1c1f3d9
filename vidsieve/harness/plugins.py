"""This process's registry, with lone plugin files added to it."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vidsieve.framework.registry import default

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry


def add_plugins(files: Sequence[str] | None) -> "Registry":
    """This process's registry after loading `files`. Installed plugins that cannot be imported are warned about.

    Raises:
        PluginError: a file is missing, fails to import, or registers nothing.
    """
    registry = default()
    for file in files or ():
        registry.add_file(file)
    registry.policies  # noqa: B018  # asks the installed plugins, which fills `failures`
    for plugin, why in registry.failures.items():
        warnings.warn(f"plugin {plugin}: could not be imported: {why}", stacklevel=2)
    return registry
