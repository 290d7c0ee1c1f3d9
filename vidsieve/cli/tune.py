"""`vidsieve tune`: search, confirm, write."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidsieve.cli.options import Json, option
from vidsieve.cli.output import complain, note, say, say_json
from vidsieve.cli.told import command, first_line, options_told
from vidsieve.cli.workbench.setup import Setup

if TYPE_CHECKING:
    from vidsieve.cli.workbench.session import Session
    from vidsieve.tuner.request import TuneRequest
    from vidsieve.tuner.result import TuneResult

SEARCH = "Search"


class Metric(StrEnum):
    """Which latency."""

    ttft = "ttft"
    e2e = "e2e"


def tune(
    setup: Setup,
    latency_ms: Annotated[float | None, option("--latency-ms", SEARCH, "Target: milliseconds of the metric.")] = None,
    speedup: Annotated[float | None, option("--speedup", SEARCH, "Target: how many times faster, such as 2.")] = None,
    metric: Annotated[
        Metric,
        option(
            "--metric",
            SEARCH,
            "ttft: processor outputs on the device to first token. e2e: from the file to the last token.",
        ),
    ] = Metric.ttft,
    max_drop: Annotated[float, option("--max-drop", SEARCH, "Accuracy drop to certify, in percentage points.")] = 1.0,
    policy: Annotated[
        list[str] | None,
        option("--policy", SEARCH, "Search only this policy. Repeatable.  (default: all published)"),
    ] = None,
    trials: Annotated[int, option("--trials", SEARCH, "Candidates to try.")] = 30,
    examples: Annotated[
        int, option("--examples", SEARCH, "Examples to choose by; twice as many judge the result.")
    ] = 200,
    time_budget: Annotated[float | None, option("--time-budget", SEARCH, "Seconds for everything.")] = None,
    seed: Annotated[int, option("--seed", SEARCH, "Of the search.")] = 0,
    out: Annotated[Path, option("--out", SEARCH, "The policy file to write.")] = Path("policy.yaml"),
    force: Annotated[bool, option("--force", SEARCH, "Replace --out if it exists.")] = False,
    json: Json = False,
) -> None:
    """Find the policy that keeps the most accuracy within a latency target, and write it.

    `tune` alone is an alias of this command; torchtune installs a script of that name too.

    Exit codes: 0 found, 1 error, 2 usage, 3 target out of reach, 130 interrupted (the best so far is written).
    """
    from vidsieve.tuner.files import check_output
    from vidsieve.tuner.request import TuneRequest

    request = TuneRequest(
        latency_ms=latency_ms,
        speedup=speedup,
        metric=metric.value,
        max_drop_points=max_drop,
        trials=trials,
        examples=examples,
        time_budget_s=time_budget,
        seed=seed,
    )
    check_output(out, force=force)
    result = _search(setup, request, policy, out, force=force, quiet=json)
    _write(result, out, force=force)
    if json:
        say_json(result.to_dict())
        return
    for sentence in result.sentences():
        say(sentence)
    say(f"\nwrote {out}")
    _tell_use(setup, out, say)


def _search(
    setup: Setup, request: "TuneRequest", names: list[str] | None, out: Path, *, force: bool, quiet: bool
) -> "TuneResult":
    """Open the session and run the search; what an interruption found is written before it goes on up."""
    from vidsieve.cli.plugins import add_plugins

    registry = add_plugins(setup.plugin)
    if names:
        _check_names(names, registry)
    session = _open(setup, registry)
    (note if quiet else say)(first_line(session))
    from rich.console import Console

    from vidsieve.cli.progress import SearchProgress
    from vidsieve.cli.workbench.entry import search
    from vidsieve.tuner.interrupted import Interrupted

    try:
        with SearchProgress(Console(stderr=quiet)) as progress:
            return search(session, request, registry, names=names, listener=progress)
    except Interrupted as interruption:
        _tell_interrupted(interruption.result, setup, out, force=force)
        raise typer.Exit(interruption.exit_code) from None


def _check_names(names: list[str], registry: object) -> None:
    """Unknown policies are told before a model is loaded."""
    from vidsieve.framework.policy_file import load_policy

    for name in names:
        load_policy(name, registry=registry)  # type: ignore[arg-type]


def _open(setup: Setup, registry: object) -> "Session":
    """Choose the model, check the data, then load; the line that says which model stands in comes first."""
    from vidsieve.cli.workbench.choice import choose
    from vidsieve.cli.workbench.session import with_task
    from vidsieve.cli.workbench.tasks import choose_task

    choice = choose(setup.model, setup.checkpoint, registry)  # type: ignore[arg-type]
    task = choose_task(setup, choice)
    if choice.note:
        note(choice.note)
    return with_task(setup, choice, task, registry)  # type: ignore[arg-type]


def _write(result: "TuneResult", out: Path, *, force: bool) -> None:
    """Write the file; if the disk refuses, print it, so that the search is not lost."""
    from vidsieve.framework.errors import VidsieveError

    try:
        result.save(out, force=force)
    except VidsieveError:
        complain("the policy file could not be written; it follows on standard output.", kind="warning")
        say(result.yaml)
        raise


def _tell_interrupted(result: "TuneResult | None", setup: Setup, out: Path, *, force: bool) -> None:
    """The best so far goes to the file, with how to look at it."""
    if result is None:
        complain("interrupted before any policy was found; nothing was written.", kind="")
        return
    _write(result, out, force=force)
    complain(
        f"interrupted: the best so far, {result.policy.name}, is in {out}, not confirmed on held-out data.", kind=""
    )
    complain(f"  see it:     {command('show', [str(out)])}", kind="")
    complain(f"  measure it: {command('eval', [*options_told(setup), '--policy', str(out)])}", kind="")


def _tell_use(setup: Setup, out: Path, tell: object) -> None:
    """The line to run it, and three lines of Python."""
    say("use it:")
    say(f"  {command('run', options_told(setup, policy=out))}")
    say("or around your own model.generate:")
    say("  from vidsieve import applied, load_policy")
    say(f"  with applied(model, load_policy({str(out)!r})):")
    say("      output = model.generate(**inputs)")
