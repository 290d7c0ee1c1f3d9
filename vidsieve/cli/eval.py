"""`vidsieve eval`: accuracy (or agreement), attained retention and latency ratio of a policy, with intervals."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.options import Json, MetricOption, PolicyOptions
from vidsieve.cli.output import complain, interval, note, say, say_json, table, warn_differences, workload_line
from vidsieve.framework.errors import UsageError
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidsieve.framework.task import Example, Task
    from vidsieve.harness.data.example_choice import EvalExamples
    from vidsieve.harness.session import Chosen, Session


def evaluate(
    setup: Setup,
    policy_options: PolicyOptions,
    heldout: Annotated[
        bool,
        typer.Option(
            "--heldout",
            help="Insist on the held-out examples that a tuned policy file stores; taken anyway if the data fits.",
        ),
    ] = False,
    examples: Annotated[
        int | None, typer.Option("--examples", help="Examples of the held-out split.  (default: 200, or all of --data)")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which examples are held out.  (default: 0)")] = None,
    metric: MetricOption = "ttft",
    json: Json = False,
) -> None:
    """Measure a policy against the uncompressed model: accuracy or agreement, retention, latency ratio."""
    if heldout and (examples is not None or seed is not None):
        raise UsageError("--heldout: takes the examples stored in the policy file; leave --examples and --seed out.")
    if examples is not None and examples < 1:
        raise UsageError(f"--examples: must be at least 1, got {examples}.")
    from vidsieve.harness.data.example_choice import choose_examples, choose_task
    from vidsieve.harness.evaluation import evaluate
    from vidsieve.harness.session import choose_for

    chosen = choose_for(policy_options.load, setup)
    task = choose_task(chosen.setup, chosen.choice)
    if chosen.choice.note:
        note(chosen.choice.note)
    choosing = partial(choose_examples, policy=chosen.policy, heldout=heldout, count=examples, seed=seed)
    session = _open(chosen, task, choosing)
    measured = choosing(session.task)
    (note if json else say)(workload_line(session, f"{measured.summary} of {task.name} ({task.metric})"))
    warn_differences(chosen.policy, session)
    warn = partial(complain, kind="warning")
    result = evaluate(session, chosen.policy, measured.examples, metric, warn=warn)
    result |= {"examples_from": measured.summary, "stored": measured.stored}
    say_json(result) if json else _print(result)


def _open(chosen: "Chosen", task: "Task", choosing: "Callable[[Task], EvalExamples]") -> "Session":
    """Open the session, once every clip that it will measure on has been opened."""
    from vidsieve.cli.progress import search_progress
    from vidsieve.harness.model_bench import timed_examples

    def wanted(task: "Task") -> "list[Example]":
        return [*choosing(task).examples, *timed_examples(task, chosen.setup)]

    with search_progress(quiet=True) as listener:
        task = chosen.readable(task, wanted, notice=note, step=listener.step)
    return chosen.open(task)


def _print(result: dict[str, Any]) -> None:
    accuracy, latency = result["accuracy"], result["latency"]
    requested = result["requested_retention"]
    kept = accuracy["attained_retention"]
    wish = "as its settings say" if requested is None else f"{requested:g} asked"
    got = "unknown" if kept is None else f"{kept:.4f}"
    say(f"{result['policy']} ({result['policy_hash']}): retention {wish}, {got} attained")
    change = interval(accuracy["change_points"], " points")
    say(
        f"{accuracy['metric']}: {interval(accuracy['policy'], ' %', 100)} · uncompressed "
        f"{interval(accuracy['uncompressed'], ' %', 100)} · change {change} "
        f"(n={accuracy['examples']}, {accuracy['videos']} videos, {accuracy['lost']} lost, {accuracy['won']} won)"
    )
    say(
        f"{latency['metric']}: {interval(latency['policy_ms'], digits=2)} beside "
        f"{interval(latency['baseline_ms'], digits=2)} uncompressed · "
        f"ratio {interval(latency['ratio'], digits=3)} ({latency['ratio']['n']} pairs)"
    )
    if "encoding" in result:
        from vidsieve.tuner.protocol import EncodingWork

        say(EncodingWork(**result["encoding"]).sentence())
    stored = result["stored"]
    if stored is not None:
        same = "identical" if stored == accuracy["policy"]["value"] else "different"
        say(f"stored when it was tuned: {100 * stored:.1f} %, {same}")
    if len(accuracy["kinds"]) > 1:
        rows = [
            [kind, str(k["examples"]), f"{100 * k['uncompressed']:.1f}", f"{100 * k['policy']:.1f}"]
            for kind, k in accuracy["kinds"].items()
        ]
        table("by kind of question, %", ["kind", "n", "uncompressed", result["policy"]], rows)
