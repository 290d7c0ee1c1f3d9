"""What a search works on: a task and one bench for each device, in child processes unless asked otherwise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidsieve.harness.process_state import kept_threads
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry
    from vidsieve.framework.task import Task
    from vidsieve.harness.data.clip_check import Step
    from vidsieve.harness.model_bench import Workbench
    from vidsieve.harness.process.remote_bench import RemoteBench
    from vidsieve.tuner.protocol import Bench
    from vidsieve.tuner.request import TuneRequest


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenBenches:
    """`bench` times and judges; `others` are the same model on further devices, for trials."""

    task: "Task"
    bench: "Workbench | RemoteBench"
    others: "tuple[Bench, ...]" = ()


@contextmanager
def open_benches(
    setup: Setup,
    registry: "Registry",
    *,
    devices: Sequence[str] | None,
    in_process: bool,
    request: "TuneRequest",
    task: "Task | None" = None,
    notice: Callable[[str], None] = lambda text: None,
    step: "Step" = lambda what, done, total: None,
) -> Iterator[OpenBenches]:
    """Choose the model, check the data and every clip that `request` will use, then load.

    `notice` gets a line if another model stands in for a family, and for each video left out; `step` the progress of
    opening clips. Children end with the block. Raises as `choose`, `choose_task`, `readable` and `load` do.
    """
    from vidsieve.harness.data.clip_check import clip_opener, readable, searched
    from vidsieve.harness.data.task_choice import choose_task
    from vidsieve.harness.model_choice import choose, fetched
    from vidsieve.harness.session import with_task

    choice = choose(setup.model, setup.checkpoint, registry)
    task = task or choose_task(setup, choice)
    if choice.note:
        notice(choice.note)
    # downloaded here, once, where it can show its progress
    choice = fetched(choice)
    wanted, opener = searched(request, setup), clip_opener(setup, choice)
    task = readable(task, wanted, opener, skip_bad=setup.skip_bad, notice=notice, step=step)
    if in_process:
        with kept_threads():
            yield OpenBenches(task=task, bench=with_task(setup, choice, task, registry).bench)
        return
    from vidsieve.harness.process.open_remote import open_remote, open_remotes

    benches: list[Any] = []
    try:
        if devices:
            benches = open_remotes(setup, choice, task, devices)
        else:
            benches = [open_remote(setup, choice, task)]
            benches[0].start()
        yield OpenBenches(task=task, bench=benches[0], others=tuple(benches[1:]))
    finally:
        for bench in benches:
            bench.close()
