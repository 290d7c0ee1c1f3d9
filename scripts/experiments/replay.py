"""Replay searches on the recorded matrices: the tuner's own code beside plainer searches, and what its parts are worth.

    python scripts/experiments/replay.py --seeds 100
    python scripts/experiments/replay.py --ablations --seeds 40

Nothing is run on a model: `replay_bench` answers from `data/MODEL.npz`. Writes `data/replay.md` or
`data/ablations.md`, and prints it. A run that was stopped goes on where it was; `--models` in several processes shares
the work, and a last run without it writes the tables.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tables
from baselines import plain_search
from grid import POLICIES, policies
from matrix import DATA, Matrix
from replay_bench import ReplayBench, ReplayTask, Truth

import vidsieve
from vidsieve.framework.errors import VidsieveError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measure.measurement import Timings
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.tuning import tune

MODELS = ("qwen2-vl-tiny", "llava-onevision-tiny")
CLOCK = "processor"
"""The times that are replayed: the wall clock's were taken on a machine that others used too."""
LIMITS = (0.15, 0.25, 0.4)
"""A target is the speed-up at which this is the largest retention ratio of vidcom2, to two digits."""
EXAMPLES, TRIALS = 200, 30


@dataclass(frozen=True)
class Method:
    """A way to search. `change` are fields of the request, `patches` names in the tuner's modules and their values.

    `noise` scales the noise of single pairs.
    """

    name: str
    kind: str = "tuner"
    change: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Any] = field(default_factory=dict)
    p_gold: bool = True
    noise: float = 1.0
    same_budget: bool = False


def no_presets(*_: Any) -> None:
    """In place of the tuner's own: nothing is tried first."""


def no_rerank(*_: Any) -> tuple[int, str]:
    """In place of the tuner's own: the search's order stands."""
    return 0, "switched off"


def quick_looks(quick: TimingRules) -> TimingRules:
    """In place of the tuner's own: ranges are found with the pairs of a quick look."""
    return quick


METHODS = (
    Method("tuner, as it comes"),
    Method("the same, a third of the timing noise", noise=1 / 3),
    Method("presets only, retention solved", change={"trials": 5, "patience": 99}),
    Method("random search, equal examples", kind="random", same_budget=True),
    Method("plain TPE, equal examples", kind="tpe", same_budget=True),
    Method(f"random search, {TRIALS} full trials", kind="random"),
    Method(f"plain TPE, {TRIALS} full trials", kind="tpe"),
)
ABLATIONS: tuple[Method, ...] = (
    Method("as it comes"),
    Method("0/1 in place of p(gold)", p_gold=False),
    Method(
        "ranges found with a quarter of the pairs",
        patches={"vidsieve.tuner.measure.retention_limits.careful": quick_looks},
    ),
    Method("confirmation does not grow", patches={"vidsieve.tuner.judge.finals.LEAST_GROWTH": 99.0}),
    Method(
        "final runs to 2 %, 200 pairs at most",
        patches={
            "vidsieve.tuner.judge.finals.HALF_WIDTH_RATIO": 0.02,
            "vidsieve.tuner.judge.finals.MOST_PAIRS": 200,
        },
    ),
    Method(
        "aims at the target itself",
        patches={
            "vidsieve.tuner.measure.retention_limits.AIM": 1.0,
        },
    ),
    Method("a third of the timing noise", noise=1 / 3),
    Method("no presets first", patches={"vidsieve.tuner.search.trial_loop.enqueue_presets": no_presets}),
    Method("no pruning", patches={"vidsieve.tuner.measure.scoring.CHECKPOINTS": ()}),
    Method("no re-rank", patches={"vidsieve.tuner.judge.rerank._how_many": no_rerank}),
    Method("re-rank by 0/1 alone", patches={"vidsieve.tuner.judge.rerank.TRUSTED_R": 2.0}),
    Method("re-rank on 200 examples", change={"rerank_examples": 200}),
    Method("patience 8", change={"patience": 8}),
    Method("no patience", change={"patience": 99}),
    Method("15 trials, no patience", change={"trials": 15, "patience": 99}),
    Method("50 trials, no patience", change={"trials": 50, "patience": 99}),
    Method("100 examples", change={"examples": 100}),
    Method("400 examples", change={"examples": 400}),
)


@cache
def truth_of(model: str) -> Truth:
    """The matrix of a model and what it holds to be true."""
    return Truth(Matrix.load(DATA / f"{model}.npz"), CLOCK)


def speedups(truth: Truth) -> list[float]:
    """The targets of one model."""
    vidcom2 = policies()["vidcom2"]
    return [round(1 / truth.latency(vidcom2.with_(retention_ratio=limit)), 2) for limit in LIMITS]


def searched() -> list[Policy]:
    """All policies of the grid but the controls."""
    return [policy for name, policy in policies().items() if name not in tables.CONTROLS]


def timings() -> Timings:
    """As on a CPU, but nothing has to be warmed up in a replay."""
    usual = Timings.for_device("cpu")
    return Timings(**{name: replace(getattr(usual, name), warmup=0) for name in ("quick", "trial", "final")})


@contextmanager
def patched(values: Mapping[str, Any]) -> Iterator[None]:
    """Module-level names of the tuner set to other values."""
    if not values:
        yield
        return
    (name, value), *rest = values.items()
    with patch(name, value), patched(dict(rest)):
        yield


def run(model: str, speedup: float, method: Method, seed: int, budget: int | None = None) -> dict[str, Any]:
    """One search and how its pick truly fares."""
    truth = truth_of(model)
    bench, task = ReplayBench(truth, seed, p_gold=method.p_gold, noise=method.noise), ReplayTask(truth.matrix)
    found: Policy | None = None
    stopped = ""
    try:
        if method.kind == "tuner":
            options = {"trials": TRIALS, "examples": EXAMPLES} | dict(method.change)
            request = TuneRequest(speedup=speedup, seed=seed, data_seed=seed, **options)
            with patched(method.patches):
                result = tune(
                    bench,
                    task,
                    request,
                    policies=searched(),
                    timings=timings(),
                    clock=lambda: bench.now_s,
                )
            found, stopped = result.policy, str(result.search.get("stopped", ""))
        else:
            trials = TRIALS if budget is None else max(2, round(budget / EXAMPLES))
            found = plain_search(
                bench,
                task,
                searched(),
                sampler=method.kind,
                target_ratio=1 / speedup,
                trials=trials,
                examples=EXAMPLES,
                seed=seed,
                timings=timings(),
            )
    except VidsieveError as error:
        stopped = f"{type(error).__name__}"
    return verdict(truth, speedup, found) | {
        "model": model,
        "speedup": speedup,
        "method": method.name,
        "seed": seed,
        "stopped": stopped,
        "search_examples": bench.scored["search"] + bench.scored["rerank"],
        "all_examples": sum(bench.scored.values()),
        "runs_timed": bench.runs_timed,
        "virtual_s": bench.now_s,
    }


def verdict(truth: Truth, speedup: float, found: Policy | None) -> dict[str, Any]:
    """Regret in points and whether the target is truly met. A pick that misses is cut to its true limit first.

    `choice` is the part of the regret that would be left at the pick's own latency; the rest is latency not used.
    """
    nothing = {"base": "", "ratio": None, "regret": None, "choice": None, "meets": False, "over": None}
    if found is None or not found.stages:
        return nothing
    latency, limit = truth.latency(found), truth.limit(found, 1 / speedup)
    if limit is None:
        return nothing | {"over": latency * speedup - 1}
    assert found.retention_ratio is not None
    fitting = found.with_(retention_ratio=min(found.retention_ratio, limit))
    accuracy, bases = truth.accuracy(fitting), [policy.name for policy in searched()]
    beside = truth.best(truth.latency(fitting) + 1e-9, bases)
    best = truth.best(1 / speedup, bases)
    assert best is not None
    return {
        "base": found.name,
        "ratio": found.retention_ratio,
        "regret": 100 * (best[1] - accuracy),
        # below the recorded retention ratios nothing stands beside a pick
        "choice": 0.0 if beside is None else 100 * (beside[1] - accuracy),
        "meets": latency * speedup <= 1 + 1e-9,
        "over": latency * speedup - 1,
    }


def study(task: tuple[str, float, int, Sequence[Method]]) -> list[dict[str, Any]]:
    """All methods on one model, target and seed; those of an equal budget get what the first one used."""
    model, speedup, seed, methods = task
    rows: list[dict[str, Any]] = []
    for method in methods:
        budget = rows[0]["search_examples"] if method.same_budget else None
        rows.append(run(model, speedup, method, seed, budget))
    return rows


def replay(name: str, methods: Sequence[Method], seeds: int, models: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    """Every method on every model, target and seed. What an earlier run with the same code finished is not repeated."""
    folder = DATA / f"{name}.parts"
    folder.mkdir(exist_ok=True)
    done: list[dict[str, Any]] = []
    for file in folder.glob(f"{code_hash()}-*.jsonl"):
        done += [row for line in file.read_text().splitlines() for row in json.loads(line)]
    known = {(row["model"], row["speedup"], row["seed"]) for row in done}
    tasks = [(m, s, seed, methods) for seed in range(seeds) for m in models for s in speedups(truth_of(m))]
    left = [task for task in tasks if task[:3] not in known]
    with ProcessPoolExecutor(jobs) as pool, (folder / f"{code_hash()}-{'-'.join(models)}.jsonl").open("a") as lines:
        for number, found in enumerate(pool.map(study, left), start=1):
            lines.write(json.dumps(found) + "\n")
            lines.flush()
            done += found
            if number % max(1, len(left) // 20) == 0:
                print(f"{number} of {len(left)}", flush=True)
    wanted = {task[:3] for task in tasks}
    return [row for row in done if (row["model"], row["speedup"], row["seed"]) in wanted]


def code_hash() -> str:
    """Changes with the tuner's code, these scripts, the policies and the matrices."""
    digest = hashlib.sha256()
    here, tuner = Path(__file__).parent, Path(vidsieve.__file__).parent / "tuner"
    scripts = [here / f"{name}.py" for name in ("replay", "replay_bench", "baselines", "grid", "matrix")]
    for file in [*sorted(tuner.glob("*.py")), *scripts, *sorted(POLICIES.glob("*.yaml")), *sorted(DATA.glob("*.npz"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def main() -> None:
    """Replay, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--ablations", action="store_true", help="what the tuner's parts are worth")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    name, methods = ("ablations", ABLATIONS) if args.ablations else ("replay", METHODS)
    report = tables.ablations_report if args.ablations else tables.methods_report
    rows = replay(name, methods, args.seeds, args.models, args.jobs)
    told = report(rows, {model: truth_of(model) for model in args.models}, args.seeds, CLOCK)
    text = tables.written(told)
    (DATA / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    (DATA / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
