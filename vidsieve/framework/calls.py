"""Calling a stage through pluggy: it hands each hook the arguments it takes, and names the stage when one raises."""

from functools import lru_cache
from typing import Any

import pluggy
import torch

from vidsieve.framework.errors import StageError, VidsieveError
from vidsieve.framework.hookspecs import PROJECT, STAGE_HOOKS, StageSpecs
from vidsieve.framework.stage import Stage


# A stage is found by identity (its hash), so a manager is built once for each stage object; the bound forgets the
# solved copies of shapes not seen for long.
@lru_cache(maxsize=1024)
def _callers(stage: Stage) -> dict[str, Any]:
    """One manager per stage object: its hook callers by name."""
    manager = pluggy.PluginManager(PROJECT)
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
    try:
        return _callers(stage)[hook](**{argument: record})
    except (VidsieveError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = f"{where}: raised {type(error).__name__}: {error}. The model is left as it was found."
        raise StageError(text) from error
