"""`vidsieve eval`: accuracy (or agreement), attained retention and latency ratio of a policy, with intervals."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidsieve.cli.asked_policy import AskedPolicy
from vidsieve.cli.options import Json, MetricOption
from vidsieve.cli.output import complain, note, say, say_json, table
from vidsieve.cli.told import first_line, interval
from vidsieve.cli.warned import warn_differences
from vidsieve.framework.errors import UsageError
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.task import Example, Task
    from vidsieve.harness.data.eval_examples import EvalExamples
    from vidsieve.harness.session import Chosen, Session
    from vidsieve.tuner.request import Metric


def evaluate(
    setup: Setup,
    asked: AskedPolicy,
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
    """Measure a policy beside the uncompressed model: accuracy or agreement, retention, latency ratio."""
    if heldout and (examples is not None or seed is not None):
        raise UsageError("--heldout: takes the examples stored in the policy file; leave --examples and --seed out.")
    if examples is not None and examples < 1:
        raise UsageError(f"--examples: must be at least 1, got {examples}.")
    from vidsieve.harness.data.eval_examples import pick
    from vidsieve.harness.data.task_choice import choose_task
    from vidsieve.harness.session import choose_for

    chosen = choose_for(asked.load, setup)
    task = choose_task(chosen.setup, chosen.choice)
    if chosen.choice.note:
        note(chosen.choice.note)
    picking = partial(pick, policy=chosen.policy, heldout=heldout, count=examples, seed=seed)
    session = _open(chosen, task, picking)
    picked = picking(session.task)
    (note if json else say)(first_line(session, f"{picked.told} of {task.name} ({task.metric})"))
    warn_differences(chosen.policy, session)
    told = measure(session, chosen.policy, picked, metric)
    say_json(told) if json else _tell(told)


def _open(chosen: "Chosen", task: "Task", picking: "Callable[[Task], EvalExamples]") -> "Session":
    """The session, once every clip that it will measure on has been opened."""
    from vidsieve.cli.tune import progress
    from vidsieve.harness.model_bench import timed_examples

    def wanted(task: "Task") -> "list[Example]":
        return [*picking(task).examples, *timed_examples(task, chosen.setup)]

    with progress(quiet=True) as listener:
        task = chosen.readable(task, wanted, notice=note, step=listener.step)
    return chosen.open(task)


def measure(session: "Session", policy: "Policy", picked: "EvalExamples", metric: "Metric") -> dict[str, Any]:
    """Score both on the examples, then time them in turn."""
    from vidsieve.tuner.judge.paired_accuracy import paired_accuracy, rates_by_kind
    from vidsieve.tuner.measure.latency import PairedTimer
    from vidsieve.tuner.measure.measurement import Timings

    bench = session.bench
    # the policy first: if it cannot run here, that shows at once
    ours = list(bench.score(policy, picked.examples))
    base = list(bench.score(None, picked.examples))
    timings = Timings.for_device(bench.describe()["device"])
    timer = PairedTimer(bench, metric)
    timer.warn = lambda text: complain(text, kind="warning")
    latency = timer.measure(policy, timings.final)
    kinds = {
        kind: {"examples": n, "uncompressed": theirs, "policy": rate}
        for kind, (n, theirs, rate) in rates_by_kind(ours, base).items()
    }
    return {
        "policy": policy.name,
        "policy_hash": policy.hash,
        "requested_retention": policy.retention_ratio,
        "examples_from": picked.told,
        "accuracy": paired_accuracy(session.task.metric, ours, base).to_dict() | {"kinds": kinds},
        "latency": latency.to_dict(),
        "stored": picked.stored,
        "measured_on": {**bench.describe(), "frames_taken": list(bench.frames_taken)},
    }


def _tell(told: dict[str, Any]) -> None:
    accuracy, latency = told["accuracy"], told["latency"]
    asked = told["requested_retention"]
    kept = accuracy["attained_retention"]
    wish = "as its settings say" if asked is None else f"{asked:g} asked"
    got = "unknown" if kept is None else f"{kept:.4f}"
    say(f"{told['policy']} ({told['policy_hash']}): retention {wish}, {got} attained")
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
    stored = told["stored"]
    if stored is not None:
        same = "identical" if stored == accuracy["policy"]["value"] else "different"
        say(f"stored when it was tuned: {100 * stored:.1f} %, {same}")
    if len(accuracy["kinds"]) > 1:
        rows = [
            [kind, str(k["examples"]), f"{100 * k['uncompressed']:.1f}", f"{100 * k['policy']:.1f}"]
            for kind, k in accuracy["kinds"].items()
        ]
        table("by kind of question, %", ["kind", "n", "uncompressed", told["policy"]], rows)
