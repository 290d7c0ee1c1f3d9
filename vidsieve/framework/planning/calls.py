"""Calling a stage through pluggy: it hands each hook the arguments it takes, and names the stage when one raises."""

from typing import Any

import pluggy
import torch

from vidsieve.framework.errors import StageError, VidsieveError
from vidsieve.framework.hookspecs import PROJECT, STAGE_HOOKS, StageSpecs
from vidsieve.framework.stage import Stage, cached_on_owner


class _StageManager(pluggy.PluginManager):
    """Looks at the hooks alone: a pydantic model has a hundred other attributes, and reading them all costs 5 ms."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in STAGE_HOOKS else None


@cached_on_owner(1)
def callers(stage: Stage) -> dict[str, Any]:
    """One manager per stage object: its hook callers by name. A policy builds them when it is made."""
    manager = _StageManager(PROJECT)
    manager.add_hookspecs(StageSpecs)
    manager.register(stage)
    manager.check_pending()
    return {name: getattr(manager.hook, name) for name in STAGE_HOOKS}


def call(where: str, stage: Stage, hook: str, record: object) -> Any:
    """The plan `stage` returns from `hook` for `record`.

    Raises:
        StageError: the stage raised; the cause is chained. Our own errors and out-of-memory pass as they are.
    """
    argument = {"reduce_frames": "frames", "prune_kv": "step"}.get(hook, "tokens")
    hook_caller = callers(stage)[hook]
    try:
        return hook_caller(**{argument: record})
    except (VidsieveError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        text = f"{where}: raised {type(error).__name__}: {error}. The model is left as it was found."
        raise StageError(text) from error
