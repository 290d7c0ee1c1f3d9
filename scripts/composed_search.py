"""Print whether a composition of stages that nobody published beats the best published policy, a model a row.

    python scripts/composed_search.py                      what is bundled for each family, at 2 times faster
    python scripts/composed_search.py --model qwen2-vl --speedup 1.5 2.5 --trials 100
    python scripts/composed_search.py --trials 0           measure nothing, print what is stored

Best composition and best published policy are compared on held-out questions at equal latency, as the verdict of
`vidsieve tune --policies composed` is. Every search keeps a study in `--out` and goes on there when it is called again;
the policy that it found stands beside it. A finished search is measured again only with another `--out`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vidsieve.bundled.bundled_models import MODELS
from vidsieve.harness.search_entry import tune
from vidsieve.tuner.result import Bounds, Listener, TrialEvent, TuneResult

OUT = Path("composed-search")
COLUMNS = (
    *("model", "target", "seed", "best published", "best composition", "composition − published, held-out points"),
    *("latency ÷ uncompressed, of both", "compositions tried", "the composition"),
)


class Told(Listener):
    """Prints a line for whatever happens."""

    def started(self, bounds: Bounds) -> None:
        """The bounds are known."""
        print(f"  {len(bounds.policies) - 1} published policies; set aside: {dict(bounds.set_aside)}", flush=True)

    def notice(self, text: str) -> None:
        """Something for people."""
        print(f"  {text}", flush=True)

    def trial(self, event: TrialEvent) -> None:
        """A trial is over."""
        change = f"{event.change_points:+.1f} points" if event.change_points is not None else event.reason
        print(f"  trial {event.number}/{event.total}: {event.policy} {change} {event.verdict}", flush=True)


def row_of(model: str, speedup: float, seed: int, result: TuneResult) -> dict[str, Any]:
    """Everything the table says of one search."""
    verdict = result.composition
    assert verdict is not None
    difference = verdict.difference.scaled(100) if verdict.difference is not None else None
    return {
        "model": model,
        "checkpoint": result.policy.provenance["measured_on"].get("checkpoint", ""),
        "speedup": speedup,
        "seed": seed,
        "published": verdict.published,
        "composition": verdict.composition,
        "difference": [difference.value, difference.low, difference.high] if difference is not None else None,
        "latency": [verdict.composition_latency_ratio, verdict.published_latency_ratio],
        "tried": verdict.tried,
        "beat": verdict.beat,
        "sentence": verdict.sentence,
        "winner": result.policy.name,
        "held_out": result.accuracy.to_dict() if result.accuracy is not None else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and the verdicts below."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        change = "n/a"
        if row["difference"] is not None:
            value, low, high = row["difference"]
            change = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
        latency = " and ".join("n/a" if ratio is None else f"{ratio:.3f}" for ratio in row["latency"])
        wins = "beats it" if row["beat"] else "does not clearly beat it"
        lines.append(
            f"| {row['model']} | {row['speedup']:g} times faster | {row['seed']} | {row['published'] or 'none'} "
            f"| {row['composition'] or 'none'} | {change} | {latency} | {row['tried']} | {wins} |"
        )
    verdicts = [f"- {row['model']}, {row['speedup']:g} times faster: {row['sentence']}." for row in rows]
    return "\n".join(lines) + "\n\n" + "\n".join(verdicts) + "\n"


def measured(args: argparse.Namespace, model: str, speedup: float, seed: int) -> dict[str, Any]:
    """One search, from its study where it has one."""
    name = f"{model.replace('/', '-')}-{speedup:g}-{seed}"
    print(f"{model} at {speedup:g} times faster, seed {seed}", flush=True)
    result = tune(
        model,
        policies=args.policies,
        speedup=speedup,
        trials=args.trials,
        patience=args.trials,
        examples=args.examples,
        seed=seed,
        plugin=tuple(args.plugin),
        study=args.out / f"{name}.study.db",
        listener=Told(),
    )
    result.save(args.out / f"{name}.yaml", force=True)
    return row_of(model, speedup, seed, result)


def main() -> None:
    """Search what is missing, then print the table."""
    families = list(dict.fromkeys(model.family for model in MODELS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=families, help="families, bundled models or folders")
    parser.add_argument("--speedup", nargs="+", type=float, default=[2.0], help="targets")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--trials", type=int, default=80, help="of each search, published policies included")
    parser.add_argument("--examples", type=int, default=200, help="to choose by; twice as many judge")
    parser.add_argument("--policies", nargs="+", default=["all", "composed"], help="what compositions are beside")
    parser.add_argument("--plugin", nargs="+", default=[], help="files with further stages")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for studies, policies and rows.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    store = args.out / "rows.json"
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    done = {(row["model"], row["speedup"], row["seed"]) for row in rows}
    wanted = [(model, speedup, seed) for model in args.model for speedup in args.speedup for seed in args.seed]
    for model, speedup, seed in wanted if args.trials else ():
        if (model, speedup, seed) not in done:
            rows.append(measured(args, model, speedup, seed))
            store.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
