"""`vidsieve tune`: search, confirm and write; with `--confirm`, measure a policy again on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.options import Json, SearchSettings, StudyOptions, option
from vidsieve.cli.output import command, complain, given_options, say, say_json, write_policy
from vidsieve.framework.errors import UsageError, VidsieveError
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry
    from vidsieve.harness.output_files import Outputs
    from vidsieve.harness.session import OpenBenches
    from vidsieve.tuner.result import Listener, TuneResult

FILES = "Files"
DEFAULT_OUT = Path("policy.yaml")


NOT_MET = 3


def tune(
    setup: Setup,
    search: SearchSettings,
    study: StudyOptions,
    policies: Annotated[
        list[str] | None,
        option(
            "--policies",
            "Search",
            "Search only these: names, files or folders, with commas between or repeated; `all` for every published "
            "one; `composed` for compositions of stages that nobody published, beside the others.  (default: the "
            "published ones that are not set aside)",
        ),
    ] = None,
    confirm: Annotated[
        str | None,
        option(
            "--confirm",
            FILES,
            "Measure this policy once more, here, instead of searching; --out rewrites it.",
            "POLICY",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option("--out", FILES, "The policy file to write, with .report.html and .pareto.svg.  (default: policy.yaml)"),
    ] = None,
    force: Annotated[bool, option("--force", FILES, "Replace these files if they exist.")] = False,
    json: Json = False,
) -> None:
    """Find the policy that keeps the most accuracy within a latency target, and write it.

    What was found is kept in a study beside --out: the same command goes on where it stopped. The first Ctrl-C finishes
    the running trial and writes the best so far, the second stops at once.

    `tune` alone is an alias of this command; torchtune installs a script of that name too.

    Exit codes: 0 found, 1 error, 2 usage, 3 target out of reach, 130 interrupted (the best so far is written).
    """
    if confirm is not None:
        confirm_file(setup, search, study, policies, confirm, out, force=force, json=json)
        return
    result, outputs = _searched(setup, search, study, policies, out or DEFAULT_OUT, force=force, json=json)
    if study.join:
        say(f"the search is complete: {len(result.trials)} trials; who started it confirms and writes the policy")
        return
    _finish(result, outputs, setup, json=json)


def _searched(
    setup: Setup,
    search: dict[str, Any],
    study: StudyOptions,
    policies: list[str] | None,
    out: Path,
    *,
    force: bool,
    json: bool,
) -> "tuple[TuneResult, Outputs]":
    """Check everything that can be checked without a model, then search."""
    from vidsieve.harness.model_choice import choose
    from vidsieve.harness.output_files import Outputs
    from vidsieve.harness.setup import add_plugins
    from vidsieve.tuner.request import TuneRequest

    place = study.place(out)
    kept: dict[str, Any] = {"storage": place, "study_name": study.study_name, "fresh": study.fresh, "join": study.join}
    request = TuneRequest(**search, **kept, skip_bad=setup.skip_bad)
    resumable = not study.fresh and isinstance(place, Path) and place.exists()
    outputs = Outputs(out, force=force or study.join, resumable=resumable)
    devices = study.device_list(setup.device)
    registry = add_plugins(setup.plugin)
    choice = choose(setup.model, setup.checkpoint, registry)
    _check_names(policies, registry)
    # loads torch, so a usage error shows before
    from vidsieve.cli.progress import opened_with_progress

    where: dict[str, Any] = {"devices": devices, "in_process": study.in_process}
    with opened_with_progress(setup, choice, registry, request, **where, json=json) as (listener, opened):
        return _search(opened, request, policies, registry, setup, outputs, listener), outputs


def _search(
    opened: "OpenBenches",
    request: object,
    names: list[str] | None,
    registry: "Registry",
    setup: Setup,
    outputs: "Outputs",
    listener: "Listener",
) -> "TuneResult":
    """Run the search; write what an interruption or an error leaves, then raise it."""
    from vidsieve.harness.search_entry import search as run
    from vidsieve.tuner.search.trial_loop import Interrupted, SearchFailedError

    try:
        return run(opened, request, registry, names=names, listener=listener)  # type: ignore[arg-type]
    except Interrupted as interruption:
        _write_best(interruption.result, setup, outputs)
        raise typer.Exit(interruption.exit_code) from None
    except SearchFailedError as failure:
        _write_best(failure.result, setup, outputs, why="ended by an error")
        # a mistake in the code is reported as one, with its kind
        raise failure if isinstance(failure.__cause__, VidsieveError) else failure.__cause__ or failure from None


def _check_names(names: list[str] | None, registry: "Registry") -> None:
    """Refuse unknown policies before a model is loaded."""
    if not names:
        return
    from vidsieve.tuner.space.policy_catalog import expand_policies

    expand_policies(names, registry)


def _finish(result: "TuneResult", outputs: "Outputs", setup: Setup, *, json: bool) -> None:
    """Write the files, then the verdict."""
    write_policy(result, outputs)
    wrong = outputs.write_companions(result)
    for sentence in wrong:
        complain(sentence, kind="warning")
    if json:
        say_json(result.to_dict())
        return
    for sentence in result.sentences():
        say(sentence)
    files = [outputs.policy, *([] if wrong else [outputs.report, outputs.picture])]
    say(f"\nwrote {', '.join(str(file) for file in files)}")
    _print_use(setup, outputs.policy)


def _write_best(result: "TuneResult | None", setup: Setup, outputs: "Outputs", why: str = "interrupted") -> None:
    """Write the best so far, and print how to see it and how to resume."""
    if result is None:
        complain("interrupted before any policy was found; no policy was written.", kind="")
        complain("  go on:      the same command", kind="")
        return
    write_policy(result, outputs)
    out = str(outputs.policy)
    state = "confirmed on held-out data; controls are missing" if result.confirmed else "not confirmed on held-out data"
    complain(f"{why}: the best so far, {result.policy.name}, is in {out}, {state}.", kind="")
    complain("  go on:      the same command", kind="")
    complain(f"  see it:     {command('show', [out])}", kind="")
    complain(f"  measure it: {command('eval', [*given_options(setup), '--policy', out])}", kind="")


def _print_use(setup: Setup, out: Path) -> None:
    """Print the line to run it, and three lines of Python."""
    say("use it:")
    say(f"  {command('run', given_options(setup, policy=out))}")
    say("or around your own model.generate:")
    say("  from vidsieve import applied, load_policy")
    say(f"  with applied(model, load_policy({str(out)!r})):")
    say("      output = model.generate(**inputs)")


def confirm_file(
    setup: Setup,
    search: Mapping[str, Any],
    study: StudyOptions,
    policies: list[str] | None,
    path: str,
    out: Path | None,
    *,
    force: bool,
    json: bool,
) -> None:
    """Measure the policy in `path` against the uncompressed model; exit code 3 where it misses its target.

    Model, workload and target come from its provenance where the options leave them out.
    """
    from vidsieve.cli.progress import opened_with_progress
    from vidsieve.framework.policy.file import load_policy
    from vidsieve.harness.model_choice import choose
    from vidsieve.harness.output_files import Outputs
    from vidsieve.harness.session import as_measured, differences
    from vidsieve.harness.setup import add_plugins
    from vidsieve.tuner.request import TuneRequest
    from vidsieve.tuner.tuning import reconfirm

    if study.devices or study.storage or study.join or policies:
        raise UsageError("--confirm: measures one policy on one device; leave out --devices, --policies, --storage.")
    registry = add_plugins(setup.plugin)
    policy = load_policy(path, registry=registry)
    outputs = Outputs(out, force=force, resumable=False) if out is not None else None
    request = TuneRequest(**_as_tuned(search, policy))
    setup = as_measured(setup, policy)
    choice = choose(setup.model, setup.checkpoint, registry)
    where: dict[str, Any] = {"devices": None, "in_process": study.in_process}
    with opened_with_progress(setup, choice, registry, request, **where, json=json) as (listener, opened):
        for sentence in differences(policy, dict(opened.bench.describe())):
            complain(f"measured elsewhere: {sentence}", kind="warning")
        result = reconfirm(opened.bench, opened.task, request, policy, listener=listener)
    if outputs is not None:
        write_policy(result, outputs)
        for sentence in outputs.write_report(result):
            complain(sentence, kind="warning")
    if json:
        say_json(result.to_dict())
    else:
        for sentence in result.sentences():
            say(sentence)
        if outputs is not None:
            say(f"\nwrote {outputs.policy}")
    if not result.confirmed:
        raise typer.Exit(NOT_MET)


def _as_tuned(search: Mapping[str, Any], policy: "Policy") -> dict[str, Any]:
    """Fill a target and counts that were left out from the policy's provenance."""
    from vidsieve.tuner.request import TuneRequest

    provenance: Mapping[str, Any] = policy.provenance
    target = provenance.get("target") or {}
    changes: dict[str, Any] = {}
    if search["latency_ms"] is None and search["speedup"] is None:
        if target.get("speedup") is not None:
            changes["speedup"] = float(target["speedup"])
        elif target.get("value_ms") is not None:
            changes["latency_ms"] = float(target["value_ms"])
        else:
            raise UsageError(
                f"--confirm: {policy.name} stores no target (it was not tuned). Give --latency-ms or --speedup."
            )
        if target.get("metric") == "e2e_ms":
            changes["metric"] = "e2e"
    heldout = ((provenance.get("data") or {}).get("splits") or {}).get("heldout") or {}
    # half as many chose as judge; a count that was given stands
    if search["examples"] == TuneRequest.examples and heldout.get("examples"):
        changes["examples"] = max(2, round(int(heldout["examples"]) / 2))
    return {**search, **changes}
