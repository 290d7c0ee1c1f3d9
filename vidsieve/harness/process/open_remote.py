"""Workbenches in child processes: one for each device, so that a crash or a full device costs one trial."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vidsieve.framework.errors import UsageError
from vidsieve.harness.model_choice import Choice
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.task import Task
    from vidsieve.harness.model_bench import Workbench
    from vidsieve.harness.process.remote_bench import RemoteBench

FACTORY = f"{__name__}:open_here"


@dataclass(frozen=True, eq=False, kw_only=True)
class Opening:
    """What a child needs: the choices are made, so that a child cannot choose otherwise than its parent."""

    setup: Setup
    choice: Choice
    task: "Task"
    seed: int = 0


def open_remote(setup: Setup, choice: Choice, task: "Task", *, seed: int = 0) -> "RemoteBench":
    """The bench that `with_task` would open, in a child process, which starts when the bench is first asked.

    The child loads `setup.plugin`, the model, and takes its timing clips from `task`.

    Raises:
        UsageError: the task is an object that cannot be handed to another process.
    """
    from vidsieve.harness.process.pickling import pack
    from vidsieve.harness.process.remote_bench import RemoteBench

    try:
        pack(task)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UsageError(
            f"data: the task {task.name!r} cannot be handed to a child process: {error}. Define {type(task).__name__} "
            "in a module that can be imported, and keep open files and functions out of it."
        ) from None
    return RemoteBench(FACTORY, Opening(setup=setup, choice=choice, task=task, seed=seed), name=setup.device or "")


def open_remotes(
    setup: Setup, choice: Choice, task: "Task", devices: Sequence[str], *, seed: int = 0
) -> "list[RemoteBench]":
    """One bench for each device, loading side by side; ready when this returns.

    Raises:
        UsageError: as `open_remote`, or a device that is named twice or not there.
        VidsieveError: what opening the model raises. No child is left then.
    """
    repeated = sorted({device for device in devices if list(devices).count(device) > 1})
    if repeated:
        raise UsageError(f"`devices`: {repeated[0]} stands more than once; name each device once.")
    benches = [open_remote(replace(setup, device=device), choice, task, seed=seed) for device in devices]
    try:
        for bench in benches:
            bench.launch()
        for bench in benches:
            bench.start()
    except BaseException:
        for bench in benches:
            bench.close()
        raise
    return benches


def open_here(opening: Opening) -> "Workbench":
    """In the child: the plugins, the model and the bench."""
    from vidsieve.framework.registry import default
    from vidsieve.harness.session import with_task

    registry = default()
    for file in opening.setup.plugin or ():
        registry.add_file(file)
    return with_task(opening.setup, opening.choice, opening.task, registry, seed=opening.seed).bench
