"""How often the tuner's intervals cover the truth, on samples drawn from the recorded matrices.

    python scripts/experiments/interval_coverage.py --resamples 500

Videos are drawn with replacement and every draw counts as a video of its own, so the matrix is the whole truth and a
sample is n independent draws from it: no finite-population effect flatters the intervals. Intervals are made by the
tuner's own `Heldout.judge` and `PairedTimer`. Writes `data/coverage.md` and `data/coverage.json`, and prints the table.
"""

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from grid import Cell
from matrix import DATA
from replay import MODELS, timings, truth_of
from replay_bench import ReplayBench, ReplayTask, Truth

from vidsieve.tuner.judge.paired_accuracy import Heldout
from vidsieve.tuner.measure.latency import PairedTimer

DROPS = (0.0, 2.0, 5.0, 10.0)
"""Points of true accuracy lost; of every model the configuration nearest to each is taken."""
SIZES = (100, 200, 400)
STATED = 95.0
JUST = 0.01
"""Points below the true drop at which a certificate would be wrong."""


def near(truth: Truth, drop: float) -> Cell:
    """The configuration whose true drop is nearest to `drop` points."""
    full = truth.accuracy(None)
    return min(truth.cells, key=lambda cell: abs(100 * (full - truth.accuracy(cell.policy)) - drop))


def accuracy_case(task: tuple[str, float, int, int]) -> dict[str, Any]:
    """Held-out intervals of one configuration at one size: how often the true change is inside."""
    model, wanted, size, resamples = task
    truth = truth_of(model)
    cell = near(truth, wanted)
    change = 100 * (truth.accuracy(cell.policy) - truth.accuracy(None))
    covered = above = below = wrong = 0
    widths = []
    for seed in range(resamples):
        bench, examples = ReplayBench(truth, seed), ReplayTask(truth.matrix).examples("heldout", size, seed=seed)
        allowed = max(0.0, -change - JUST)
        heldout = Heldout(bench, examples, "accuracy", max_drop_points=allowed, seed=seed)
        found = heldout.accuracy(tuple(bench.score(cell.policy, examples)))
        interval = found.difference.scaled(100)
        covered += interval.low <= change <= interval.high
        above += change > interval.high
        below += change < interval.low
        wrong += found.certified
        widths.append(interval.high - interval.low)
    return {
        "model": model,
        "configuration": f"{cell.base} at {cell.ratio:g}",
        "true change": change,
        "examples": size,
        "covered": 100 * covered / resamples,
        "better": 100 * above / resamples,
        "worse": 100 * below / resamples,
        # with no true drop there is nothing to certify wrongly
        "wrongly certified": 100 * wrong / resamples if -change > JUST else None,
        "half width": float(np.mean(widths)) / 2,
        "resamples": resamples,
    }


def latency_case(task: tuple[str, str, float, int]) -> dict[str, Any]:
    """Intervals of the latency ratio under one of the tuner's rules: how often the true median is inside."""
    model, rules_name, ratio, resamples = task
    truth = truth_of(model)
    policy = next(cell.policy for cell in truth.cells if cell.base == "vidcom2" and cell.ratio == ratio)
    rules = replace(getattr(timings(), rules_name))
    true = truth.latency(policy)
    covered = above = 0
    pairs, widths = [], []
    for seed in range(resamples):
        bench = ReplayBench(truth, seed)
        interval = PairedTimer(bench, "ttft", lambda bench=bench: bench.now_s).measure(policy, rules).ratio
        covered += interval.low <= true <= interval.high
        above += true > interval.high
        pairs.append(interval.n)
        widths.append(interval.half_width_ratio)
    return {
        "model": model,
        "configuration": f"vidcom2 at {ratio:g}",
        "rules": rules_name,
        "covered": 100 * covered / resamples,
        "slower": 100 * above / resamples,
        "pairs": float(np.median(pairs)),
        "half width": 100 * float(np.median(widths)),
        "resamples": resamples,
    }


def accuracy_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line a configuration and size."""
    lines = [
        "| model | configuration | true change | n | stated | covered | truth is better | truth is worse "
        "| wrongly certified | half width |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        wrong = case["wrongly certified"]
        lines.append(
            f"| {case['model']} | {case['configuration']} | {case['true change']:+.2f} | {case['examples']} "
            f"| {STATED:.0f} % | {case['covered']:.1f} % | {case['better']:.1f} % | {case['worse']:.1f} % "
            f"| {'n/a' if wrong is None else f'{wrong:.1f} %'} | {case['half width']:.1f} |"
        )
    return "\n".join(lines)


def latency_table(cases: Sequence[dict[str, Any]]) -> str:
    """One line a configuration and rule."""
    lines = [
        "| model | configuration | rules | stated | covered | truth is slower | pairs (median) | half width (median) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {case['model']} | {case['configuration']} | {case['rules']} | {STATED:.0f} % | {case['covered']:.1f} % "
        f"| {case['slower']:.1f} % | {case['pairs']:.0f} | {case['half width']:.1f} % |"
        for case in cases
    ]
    return "\n".join(lines)


def main() -> None:
    """Resample, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    sizes = [(m, drop, n, args.resamples) for m in args.models for drop in DROPS for n in SIZES]
    rules = [(m, name, r, args.resamples) for m in args.models for name in ("quick", "trial", "final") for r in (0.25,)]
    with ProcessPoolExecutor(args.jobs) as pool:
        accuracy = list(pool.map(accuracy_case, sizes))
        latency = list(pool.map(latency_case, rules))
    told = {"resamples": args.resamples, "accuracy": accuracy, "latency": latency}
    text = written(told)
    (DATA / "coverage.md").write_text(text)
    (DATA / "coverage.json").write_text(json.dumps(told, indent=1) + "\n")
    print(text)


def written(told: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    error = 100 * math.sqrt(0.95 * 0.05 / told["resamples"])
    parts = [
        f"{told['resamples']} resamples; a coverage of 95 % has a standard error of {error:.1f} points.",
        "### Accuracy: the paired change in points",
        accuracy_table(told["accuracy"]),
        "### Latency: the median of policy ÷ uncompressed",
        latency_table(told["latency"]),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
