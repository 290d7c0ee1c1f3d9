"""A few real searches with the setting of the replays, beside what the replays say of such searches.

    python scripts/experiments/live.py qwen2-vl-tiny --seeds 0 1 2

The pick's true accuracy is looked up in the matrix, so that its regret can be put beside the replays'. Appends to
`data/live.json`; `--table` writes `data/live.md` from it and prints it.
"""

import argparse
import json
import time
from typing import Any

from matrix import DATA
from replay import EXAMPLES, METHODS, MODELS, TRIALS, run, searched, speedups, truth_of, verdict
from replay_bench import Truth

from vidsieve.framework import registry
from vidsieve.harness.session import open_session
from vidsieve.harness.setup import Setup
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener, TrialEvent
from vidsieve.tuner.tuning import tune

TARGET = 1
"""Which of the targets: the middle one."""
REPLAYS = 20
STORE = DATA / "live.json"


class Told(Listener):
    """Prints a line a trial."""

    def trial(self, event: TrialEvent) -> None:
        """A trial is over."""
        print(f"  trial {event.number}: {event.policy} {event.retention_ratio} {event.verdict}", flush=True)


def live(model: str, seed: int, speedup: float) -> dict[str, Any]:
    """One real search."""
    truth = truth_of(model)
    session = open_session(Setup(model=model, rung=truth.matrix.header["rung"]), registry.default(), seed=seed)
    request = TuneRequest(speedup=speedup, seed=seed, data_seed=seed, trials=TRIALS, examples=EXAMPLES)
    began = time.perf_counter()
    result = tune(session.bench, session.task, request, policies=searched(), listener=Told())
    found, accuracy, latency = result.policy, result.accuracy, result.latency
    assert accuracy is not None and latency is not None
    change = accuracy.difference.scaled(100)
    return verdict(truth, speedup, found) | {
        "model": model,
        "seed": seed,
        "speedup": speedup,
        "seconds": time.perf_counter() - began,
        "settings": [bound.to_dict() for bound in found.stages],
        "trials": len(result.trials),
        "change": [change.value, change.low, change.high],
        "true_change": 100 * (truth.accuracy(found) - truth.accuracy(None)),
        "latency_ratio": [latency.ratio.value, latency.ratio.low, latency.ratio.high],
        "true_latency_ratio": truth.latency(found),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Live searches, then the spread of the replays of the same setting."""
    lines = [
        "| model | seed | pick | regret | held-out change | true change | latency ÷ uncompressed | in the matrix |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        change, ratio = row["change"], row["latency_ratio"]
        lines.append(
            f"| {row['model']} | {row['seed']} | {row['base']} at {row['ratio']:.3f} | {row['regret']:.2f} "
            f"| {change[0]:+.1f} [{change[1]:+.1f}, {change[2]:+.1f}] | {row['true_change']:+.1f} "
            f"| {ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}] | {row['true_latency_ratio']:.3f} |"
        )
    parts = ["\n".join(lines)]
    for model in dict.fromkeys(row["model"] for row in rows):
        speedup = next(row["speedup"] for row in rows if row["model"] == model)
        told = replayed(truth_of(model), model, speedup)
        parts.append(f"Replays of {model} at {speedup:g} times faster, {REPLAYS} seeds: {told}.")
    return "\n\n".join(parts) + "\n"


def replayed(truth: Truth, model: str, speedup: float) -> str:
    """Where the regret and the retention of replays lie."""
    rows = [run(model, speedup, METHODS[0], 1000 + seed) for seed in range(REPLAYS)]
    found = [row for row in rows if row["regret"] is not None]
    regrets = sorted(row["regret"] for row in found)
    ratios = sorted(row["ratio"] for row in found)
    middle, last = len(found) // 2, max(0, round(0.9 * len(found)) - 1)
    first = len(found) - 1 - last
    return (
        f"regret median {regrets[middle]:.2f}, from {regrets[first]:.2f} to {regrets[last]:.2f} in the middle 80 %; "
        f"retention median {ratios[middle]:.3f}, from {ratios[first]:.3f} to {ratios[last]:.3f}"
    )


def main() -> None:
    """Search, keep, or tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="write data/live.md from what is there")
    args = parser.parse_args()
    for seed in args.seeds if args.model else ():
        row = live(args.model, seed, speedups(truth_of(args.model))[TARGET])
        rows = json.loads(STORE.read_text()) if STORE.exists() else []
        STORE.write_text(json.dumps([*rows, row], indent=1) + "\n")
        print(json.dumps(row), flush=True)
    if args.table:
        text = table(sorted(json.loads(STORE.read_text()), key=lambda row: (row["model"], row["seed"])))
        (DATA / "live.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
