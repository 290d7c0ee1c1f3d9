"""`vidsieve.tune`: the search from Python, on a name as on the command line or on a model already loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UsageError
from vidsieve.harness.open_benches import open_benches
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry
    from vidsieve.harness.open_benches import OpenBenches
    from vidsieve.harness.session import Session
    from vidsieve.tuner.events import Listener
    from vidsieve.tuner.request import TuneRequest
    from vidsieve.tuner.result import TuneResult


def tune(
    model: Any,
    *,
    latency_ms: float | None = None,
    speedup: float | None = None,
    data: Any = None,
    videos: str | Path | None = None,
    processor: Any = None,
    policies: Sequence[str | Path] | None = None,
    metric: str = "ttft",
    max_drop: float = 1.0,
    trials: int = 30,
    examples: int = 200,
    time_budget_s: float | None = None,
    patience: int = 12,
    seed: int = 0,
    study: str | Path | None = None,
    fresh: bool = False,
    devices: Sequence[str] | None = None,
    in_process: bool = False,
    listener: "Listener | None" = None,
    **setup: Any,
) -> "TuneResult":
    """The policy that keeps the most accuracy within a latency target; `.save(path)` writes it as YAML.

    Args:
        model: a family, a hub id or a folder, as `--model` takes; or a loaded transformers model.
        latency_ms, speedup: the target, one of them: milliseconds of `metric`, or baseline ÷ policy.
        data: a JSONL file of labelled questions, or an object with the `Task` protocol.
        videos: a folder of videos without labels; the score is then agreement with the uncompressed model.
        processor: for a loaded model: its transformers processor or tokenizer, or a folder or hub id to load it from.
            Left out, it is loaded from where the model came from.
        policies: names, files or folders to search; `all` for every published one; those not set aside if left out.
        max_drop: accuracy drop to certify, in percentage points.
        patience: trials without a new best that end the search.
        study: a file that keeps the search, and resumes it in a later call, or the URL of a server; none if left out.
        fresh: set an existing study file aside and start anew.
        devices: several alike devices to search on at once, such as ["cuda:0", "cuda:1"].
        in_process: evaluate a named model in this process instead of a child; a loaded one always is.
        setup: the options `checkpoint`, `rung`, `question`, `frames`, `fps`, `max_pixels`, `batch_size`,
            `max_new_tokens`, `dtype`, `device`, `attn`, `threads` and `plugin` of the command line.

    Raises:
        UsageError: options that do not go together.
        TargetUnreachableError: no policy is fast enough here.
        VidsieveError: whatever else is wrong with model, data or policies.
    """
    request = _request(
        latency_ms, speedup, metric, max_drop, trials, examples, patience, time_budget_s, seed, study, fresh
    )
    options = _options(model, data, videos, setup)
    task = None if isinstance(data, str | Path) else data
    return _run(model, processor, task, options, request, policies, devices, in_process, listener)


def _request(
    latency_ms: float | None,
    speedup: float | None,
    metric: str,
    max_drop: float,
    trials: int,
    examples: int,
    patience: int,
    time_budget_s: float | None,
    seed: int,
    study: str | Path | None,
    fresh: bool,
) -> "TuneRequest":
    """What is asked, checked. Raises UsageError."""
    from vidsieve.tuner.request import TuneRequest

    return TuneRequest(
        latency_ms=latency_ms,
        speedup=speedup,
        metric=metric,  # type: ignore[arg-type]
        max_drop_points=max_drop,
        trials=trials,
        examples=examples,
        patience=patience,
        time_budget_s=time_budget_s,
        seed=seed,
        storage=Path(study) if isinstance(study, str) and "://" not in study else study,
        fresh=fresh,
    )


def _run(
    model: Any,
    processor: Any,
    task: Any,
    options: Setup,
    request: "TuneRequest",
    policies: Sequence[str | Path] | None,
    devices: Sequence[str] | None,
    in_process: bool,
    listener: "Listener | None",
) -> "TuneResult":
    """Open the benches that a named model needs, or take the loaded one, and search."""
    from vidsieve.cli.plugins import add_plugins

    registry = add_plugins(options.plugin)
    if not isinstance(model, str | Path):
        if devices:
            raise UsageError("devices: a loaded model stays where it is; name the model instead.")
        session = _session(model, processor, task, options, registry)
        return search(session, request, registry, names=policies, listener=listener)
    if processor is not None:
        raise UsageError("processor: goes with a loaded model; a named checkpoint brings its own.")
    with open_benches(options, registry, devices=devices, in_process=in_process, task=task) as opened:
        return search(opened, request, registry, names=policies, listener=listener)


def _options(model: Any, data: Any, videos: Any, setup: dict[str, Any]) -> Setup:
    """The command line's options; what is given as an object and not by name is no option."""
    unknown = sorted(set(setup) - set(Setup.__dataclass_fields__))
    if unknown:
        raise UsageError(f"tune: no option named {unknown[0]!r}; see help(vidsieve.tune).")
    named = {"model": model, "data": data, "videos": videos}
    given: dict[str, Any] = {name: str(value) for name, value in named.items() if isinstance(value, str | Path)}
    return Setup(**given, **setup)


def search(
    opened: "OpenBenches | Session",
    request: "TuneRequest",
    registry: "Registry",
    *,
    names: Sequence[str | Path] | None = None,
    listener: "Listener | None" = None,
) -> "TuneResult":
    """Run the tuner over `names`, or over the published policies that are for all, with the controls beside them."""
    from vidsieve.framework.policy.file import load_policy
    from vidsieve.tuner.space.policy_catalog import expand_policies, split_published
    from vidsieve.tuner.tuning import tune as run

    published = [load_policy(name, registry=registry) for name in sorted(registry.policies)]
    searched, more, controls = split_published(published)
    if not names and more and listener is not None:
        listener.told(f"{len(more)} more published policies are not searched; --policies all takes them too")
    if names:
        searched = expand_policies(names, registry)
        taken = {policy.name for policy in searched}
        controls = [control for control in controls if control.name not in taken]
    others = getattr(opened, "others", ())
    return run(
        opened.bench, opened.task, request, policies=searched, controls=controls, others=others, listener=listener
    )


def _session(model: Any, processor: Any, task: Any, options: Setup, registry: "Registry") -> "Session":
    """A session of a loaded model, on the data given or chosen."""
    from vidsieve.harness.adopted_model import adopt
    from vidsieve.harness.data.task_choice import choose_task
    from vidsieve.harness.model_bench import Workbench
    from vidsieve.harness.session import Session

    loaded = adopt(model, processor, options)
    task = task or choose_task(options, loaded.choice)
    return Session(setup=options, task=task, loaded=loaded, bench=Workbench.of_task(loaded, options, task))
