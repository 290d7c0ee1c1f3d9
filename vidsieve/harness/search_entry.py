"""`vidsieve.tune`: the search from Python, on a name as on the command line or on a model already loaded."""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UnknownNameError, UsageError
from vidsieve.harness.setup import Setup, add_plugins
from vidsieve.tuner.request import TuneRequest

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry
    from vidsieve.harness.session import OpenBenches, Session
    from vidsieve.tuner.result import Listener, TuneResult


def tune(
    model: Any,
    *,
    data: Any = None,
    videos: str | Path | None = None,
    processor: Any = None,
    policies: str | Path | Sequence[str | Path] | None = None,
    study: str | Path | None = None,
    devices: Sequence[str] | None = None,
    in_process: bool = False,
    listener: "Listener | None" = None,
    **settings: Any,
) -> "TuneResult":
    """Find the policy that keeps the most accuracy within a latency target; `.save(path)` writes it as YAML.

    Nothing is printed without a listener, and settings of the process that measuring needs are given back.

    Args:
        model: a family, a hub id or a folder; or a loaded transformers model.
        data: a JSONL file of labelled questions, or an object with the `Task` protocol.
        videos: a folder of videos without labels; the score is then agreement with the uncompressed model.
        processor: for a loaded model: its processor or tokenizer, or where to load it from (where it came from itself).
        policies: names, files or folders to search; `all` for every published one; those not set aside if left out;
            `composed` for compositions of registered stages that nobody published, beside the others.
        study: a file that keeps the search, and resumes it later, or the URL of a server; none if left out.
        devices: several alike devices to search on at once, such as ["cuda:0", "cuda:1"].
        in_process: evaluate a named model in this process instead of a child; a loaded one always is.
        listener: is called with progress and results while it works.
        settings: the fields of `TuneRequest` (`latency_ms` or `speedup`, `metric`, `max_drop_points`, `trials`, ...)
            and of `Setup` (`checkpoint`, `frames`, `dtype`, `device`, ...). `inspect.signature` lists them all.

    Raises:
        UsageError: settings that do not go together, or one that neither has (UnknownNameError).
        TargetUnreachableError: no policy is fast enough here.
        Interrupted: Ctrl-C; its `result` is the best policy so far, or None.
        SearchFailedError: an error after a policy was found; its `result` is the best so far, the error its cause.
        VidsieveError: whatever else is wrong with model, data or policies.
    """
    from vidsieve.harness.model_choice import choose
    from vidsieve.harness.model_loading import eval_mode
    from vidsieve.harness.session import open_benches
    from vidsieve.tuner.result import Listener

    request, setup = _declared(settings, study, {"model": model, "data": data, "videos": videos})
    registry = add_plugins(setup.plugin)
    listener = listener or Listener()
    task = None if isinstance(data, str | Path) else data
    if isinstance(model, str | Path):
        if processor is not None:
            raise UsageError("processor: goes with a loaded model; a named checkpoint brings its own.")
        choice = choose(setup.model, setup.checkpoint, registry)
        where: dict[str, Any] = {"devices": devices, "in_process": in_process, "task": task}
        calls: dict[str, Any] = {"notice": listener.notice, "step": listener.step}
        with open_benches(setup, choice, registry, request, **where, **calls) as opened:
            return search(opened, request, registry, names=policies, listener=listener)
    if devices:
        raise UsageError("`devices`: a loaded model stays where it is; name the model instead.")
    with eval_mode(model):
        session = _session(model, processor, task, setup, request, listener)
        return search(session, request, registry, names=policies, listener=listener)


def _signature() -> inspect.Signature:
    """List `tune`'s own parameters, then the settings that it takes by the fields of `TuneRequest` and `Setup`."""
    own = [each for each in inspect.signature(tune).parameters.values() if each.kind is not each.VAR_KEYWORD]
    names = {each.name for each in own}
    more = {
        each.name: inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type
        )
        for kind in (TuneRequest, Setup)
        for each in fields(kind)
        if each.name not in names
    }
    return inspect.Signature([*own, *more.values()], return_annotation="TuneResult")


tune.__signature__ = _signature()  # type: ignore[attr-defined]


def _declared(settings: dict[str, Any], study: str | Path | None, named: dict[str, Any]) -> tuple[TuneRequest, Setup]:
    """Make the request and the setup; what is given as an object and not by name is no setting."""
    search_fields = {each.name for each in fields(TuneRequest)}
    setup_fields = {each.name for each in fields(Setup)}
    for name in settings:
        if name not in search_fields | setup_fields:
            raise UnknownNameError("tune", "setting", name, search_fields | setup_fields)
    place = Path(study) if isinstance(study, str) and "://" not in study else study
    search_settings = {name: value for name, value in settings.items() if name in search_fields}
    request = TuneRequest(**({"storage": place} | search_settings))
    paths: dict[str, Any] = {name: str(value) for name, value in named.items() if isinstance(value, str | Path)}
    given = {name: value for name, value in settings.items() if name in setup_fields}
    return request, Setup(**paths, **given)


def search(
    opened: "OpenBenches | Session",
    request: "TuneRequest",
    registry: "Registry",
    *,
    names: str | Path | Sequence[str | Path] | None = None,
    listener: "Listener | None" = None,
) -> "TuneResult":
    """Run the tuner over `names`, or over the published policies that are for all, with the controls.

    Where `names` ask for compositions alone, the published policies that are for all are searched beside them.
    """
    from vidsieve.framework.policy.file import load_policy
    from vidsieve.tuner.space.policy_catalog import (
        asks_for_compositions,
        expand_policies,
        grammar_of,
        split_published,
    )
    from vidsieve.tuner.tuning import tune as run

    words = [names] if isinstance(names, str | Path) else list(names or ())
    published = [load_policy(name, registry=registry) for name in sorted(registry.policies)]
    searched, more, controls = split_published(published)
    named = expand_policies(words, registry)
    if not named and more and listener is not None:
        listener.notice(f"{len(more)} more published policies are not searched; `policies` all takes them too")
    if named:
        searched = named
        taken = {policy.name for policy in named}
        controls = [control for control in controls if control.name not in taken]
    compositions = None
    if asks_for_compositions(words, registry):
        compositions = grammar_of(registry, opened.bench, request.metric)
        if listener is not None:
            listener.notice(compositions.sentence())
    others = getattr(opened, "others", ())
    return run(
        opened.bench,
        opened.task,
        request,
        policies=searched,
        controls=controls,
        others=others,
        compositions=compositions,
        listener=listener,
    )


def _session(
    model: Any, processor: Any, task: Any, setup: Setup, request: TuneRequest, listener: "Listener"
) -> "Session":
    """Open a session of a loaded model, on the data given or chosen."""
    from vidsieve.harness.clip_check import clip_opener, readable, searched
    from vidsieve.harness.data.example_choice import choose_task
    from vidsieve.harness.model_bench import Workbench
    from vidsieve.harness.model_loading import adopt
    from vidsieve.harness.session import Session

    loaded = adopt(model, processor, setup)
    task = task or choose_task(setup, loaded.choice)
    wanted, opener = searched(request, setup), clip_opener(setup, loaded.choice, loaded.processor)
    task = readable(task, wanted, opener, skip_bad=setup.skip_bad, notice=listener.notice, step=listener.step)
    return Session(setup=setup, task=task, loaded=loaded, bench=Workbench.of_task(loaded, setup, task))
