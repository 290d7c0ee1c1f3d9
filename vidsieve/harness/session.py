"""Open what a verb works on, cheapest checks first: settings, names, data, and only then the model."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UsageError
from vidsieve.harness.clip_check import Step, Wanted, clip_opener, readable, searched
from vidsieve.harness.data.example_choice import choose_task
from vidsieve.harness.model_choice import Choice, choose, fetched
from vidsieve.harness.setup import Setup, add_plugins

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry
    from vidsieve.framework.task import Task
    from vidsieve.harness.model_bench import Workbench
    from vidsieve.harness.model_loading import Loaded
    from vidsieve.harness.process.remote_bench import RemoteBench
    from vidsieve.tuner.protocol import Bench
    from vidsieve.tuner.request import TuneRequest


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """A policy and what it will run on, named and checked, with nothing loaded yet."""

    registry: "Registry"
    policy: "Policy"
    setup: Setup
    choice: Choice

    @cached_property
    def fetched(self) -> Choice:
        """The choice with its files on this machine; a hub id that the user named is downloaded here, once."""
        return fetched(self.choice)

    def readable(
        self,
        task: "Task",
        wanted: Wanted,
        *,
        notice: Callable[[str], None],
        step: Step = lambda what, done, total: None,
    ) -> "Task":
        """Open every clip of `wanted` and return the task. Raises as `fetched` and `readable` do."""
        opener = clip_opener(self.setup, self.fetched)
        return readable(task, wanted, opener, skip_bad=self.setup.skip_bad, notice=notice, step=step)

    def open(self, task: "Task") -> "Session":
        """Load the model. Raises as `load` does."""
        return with_task(self.setup, self.fetched, task, self.registry)


def choose_for(policy: "Callable[[Registry], Policy]", setup: Setup) -> Chosen:
    """Load plugins and the policy, and choose the model, each once; what `setup` leaves out is the policy's own.

    Raises as `add_plugins`, `choose`, `policy` and `as_measured` do.
    """
    registry = add_plugins(setup.plugin)
    choice = choose(setup.model, setup.checkpoint, registry) if setup.model is not None else None
    loaded = policy(registry)
    setup = as_measured(setup, loaded)
    choice = choice or choose(setup.model, setup.checkpoint, registry)
    return Chosen(registry=registry, policy=loaded, setup=setup, choice=choice)


@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """A task, a loaded model and the bench made of them."""

    setup: Setup
    task: "Task"
    loaded: "Loaded"
    bench: "Workbench"


def open_session(setup: Setup, registry: "Registry", *, seed: int = 0) -> Session:
    """Choose, check and load. Raises as `choose`, `choose_task` and `load` do."""
    choice = choose(setup.model, setup.checkpoint, registry)
    task = choose_task(setup, choice)
    return with_task(setup, choice, task, registry, seed=seed)


def with_task(setup: Setup, choice: Choice, task: "Task", registry: "Registry", *, seed: int = 0) -> Session:
    """Open a session on a task that is already chosen."""
    from vidsieve.harness.model_bench import Workbench
    from vidsieve.harness.model_loading import load

    loaded = load(choice, setup, registry)
    return Session(setup=setup, task=task, loaded=loaded, bench=Workbench.of_task(loaded, setup, task, seed=seed))


FILLED = {"frames": int, "fps": float, "max_pixels": int, "batch_size": int, "max_new_tokens": int}


def as_measured(setup: Setup, policy: "Policy") -> Setup:
    """Fill what `setup` leaves out from the policy's provenance, so that a tuned policy runs as it was tuned.

    Model, workload and the bundled task's rung are taken; device and threads are this machine's own.
    """
    measured: dict[str, Any] = dict(policy.provenance.get("measured_on") or {})
    if not measured:
        return setup
    changes: dict[str, Any] = {}
    sampled = setup.frames is not None or setup.fps is not None
    for name, kind in FILLED.items():
        if getattr(setup, name) is None and name in measured and not (sampled and name in ("frames", "fps")):
            changes[name] = kind(measured[name])
    if changes.get("fps") is not None:
        changes.pop("frames", None)
    if setup.dtype == "auto" and "dtype" in measured:
        changes["dtype"] = measured["dtype"]
    if setup.model is None:
        changes |= _model_of(measured)
    task_name = str(((policy.provenance.get("data") or {}).get("task") or {}).get("name", ""))
    if setup.data is None and setup.videos is None and setup.rung is None and task_name.startswith("bundled-"):
        changes["rung"] = task_name.removeprefix("bundled-")
    return replace(setup, **changes)


def _model_of(measured: dict[str, Any]) -> dict[str, Any]:
    """Return `model`, and `checkpoint` where it can be had by name. Raises UsageError where only a path would do."""
    name, revision = str(measured.get("checkpoint", "")), str(measured.get("revision", ""))
    if measured.get("bundled") == "yes":
        return {"model": name}
    if name.count("/") == 1:
        pinned = f"{name}@{revision}" if revision and ":" not in revision else name
        return {"model": measured.get("model"), "checkpoint": pinned}
    raise UsageError(
        f"`model`: the policy was measured on the local checkpoint {name!r}; give its folder, or another model."
    )


WARNED = ("model", "checkpoint", "revision", "device_name", "dtype", "attn", "threads", "frames", "fps", "max_pixels")


def differences(policy: "Policy", described: "dict[str, str]") -> list[str]:
    """List how this run differs from what the policy's provenance was measured on."""
    measured = dict(policy.provenance.get("measured_on") or {})
    if not measured:
        return []
    return [
        f"{name} {described.get(name, 'not given')} (measured on {measured.get(name, 'not given')})"
        for name in WARNED
        if described.get(name) != measured.get(name)
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenBenches:
    """`bench` times and judges; `others` are the same model on further devices, for trials."""

    task: "Task"
    bench: "Workbench | RemoteBench"
    others: "tuple[Bench, ...]" = ()


@contextmanager
def open_benches(
    setup: Setup,
    choice: Choice,
    registry: "Registry",
    request: "TuneRequest",
    *,
    devices: Sequence[str] | None = None,
    in_process: bool = False,
    task: "Task | None" = None,
    notice: Callable[[str], None] = lambda text: None,
    step: Step = lambda what, done, total: None,
) -> Iterator[OpenBenches]:
    """Check the data and every clip that `request` will use, then load the model of `choice`.

    `notice` gets a line if another model stands in for a family, and for each video left out; `step` the progress of
    opening clips. Children end with the block. Raises as `choose_task`, `readable` and `load` do.
    """
    task = task or choose_task(setup, choice)
    if choice.note:
        notice(choice.note)
    # downloaded here, once, where it can show its progress
    choice = fetched(choice)
    wanted, opener = searched(request, setup), clip_opener(setup, choice)
    task = readable(task, wanted, opener, skip_bad=setup.skip_bad, notice=notice, step=step)
    if in_process:
        yield OpenBenches(task=task, bench=with_task(setup, choice, task, registry).bench)
        return
    benches = open_remotes(setup, choice, task, devices or [setup.device])
    try:
        yield OpenBenches(task=task, bench=benches[0], others=tuple(benches[1:]))
    finally:
        for bench in benches:
            bench.close()


FACTORY = f"{__name__}:open_here"


@dataclass(frozen=True, eq=False, kw_only=True)
class Opening:
    """What a child needs: the choices are made, so that a child cannot choose otherwise than its parent."""

    setup: Setup
    choice: Choice
    task: "Task"
    seed: int = 0


def open_remote(setup: Setup, choice: Choice, task: "Task", *, seed: int = 0) -> "RemoteBench":
    """Open the bench of `with_task` in a child process, which starts when the bench is first used.

    The child loads `setup.plugin`, the model, and takes its timing clips from `task`.

    Raises:
        UsageError: the task is an object that cannot be handed to another process.
    """
    from vidsieve.harness.process.messages import pack
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
    setup: Setup, choice: Choice, task: "Task", devices: Sequence[str | None], *, seed: int = 0
) -> "list[RemoteBench]":
    """Open one bench for each device, loading side by side; ready when this returns.

    Raises:
        UsageError: as `open_remote`, or a device that is named twice or not there.
        VidsieveError: what opening the model raises. No child is left then.
    """
    repeated = sorted({device for device in devices if device and list(devices).count(device) > 1})
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
    """Load, in the child, the plugins, the model and the bench."""
    registry = add_plugins(opening.setup.plugin)
    return with_task(opening.setup, opening.choice, opening.task, registry, seed=opening.seed).bench
