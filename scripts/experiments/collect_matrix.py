"""Score and time every configuration of the grid on a bundled model, resumably.

    python scripts/experiments/collect_matrix.py qwen2-vl-mini
    python scripts/experiments/collect_matrix.py qwen2-vl-mini --timings

The first form scores, the second times; each goes on where it was stopped and packs what there is into
`data/MODEL.npz`. Scoring goes through `Workbench.score`, a clip's questions at a time: the clip is encoded once for all
configurations, and each of these fills the cache with its shortened video once for all questions.
"""

import argparse
import datetime
import json
import os
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from grid import Cell, anchors, cells
from matrix import DATA, FORMAT, Matrix

from vidsieve.bundled.bundled_models import MODELS, get
from vidsieve.framework import registry
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example
from vidsieve.harness.session import Session, open_session
from vidsieve.harness.setup import Setup
from vidsieve.tuner.measure.latency import PairedTimer, TimingRules

SWEEP_PAIRS = 8


def main() -> None:
    """Parse, score or time, pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[model.name for model in MODELS])
    parser.add_argument("--out", type=Path, help="default: data/MODEL.npz beside this script")
    parser.add_argument("--rung", default="cuts", help="difficulty of the bundled task")
    parser.add_argument("--clips", type=int, default=96, help="of the population, each with all its questions")
    parser.add_argument("--seed", type=int, default=7, help="of the clips")
    parser.add_argument("--sweeps", type=int, default=2, help=f"passes of {SWEEP_PAIRS} pairs over all configurations")
    parser.add_argument("--timings", action="store_true", help="time instead of scoring")
    args = parser.parse_args()
    session = open_session(Setup(model=args.model, rung=args.rung, feature_store="memory"), registry.default())
    out = args.out or DATA / f"{args.model}.npz"
    work = Collection(session, out, args)
    if args.timings:
        work.time(args.sweeps)
    else:
        work.score()
    work.pack()


class Collection:
    """The pass over a grid, its parts in a folder beside the result."""

    def __init__(self, session: Session, out: Path, args: argparse.Namespace) -> None:
        self.session, self.out, self.args = session, out, args
        self.cells = list(cells(session.bench.shape))
        self.anchors = list(anchors(session.bench.shape))
        count = args.clips * len(get(args.model).shape.kinds)
        self.examples = list(session.task.examples("heldout", count, seed=args.seed))
        self.clips = [list(asked) for _, asked in groupby(self.examples, key=lambda example: example.group)]
        self.parts = out.with_suffix(".parts")
        self.parts.mkdir(parents=True, exist_ok=True)
        self._claim()

    def _claim(self) -> None:
        """Refuse parts that another grid or model left."""
        told = json.dumps(self._header(), sort_keys=True)
        stored = self.parts / "grid.json"
        if stored.exists() and stored.read_text() != told:
            raise SystemExit(f"{self.parts}: was begun with another grid, model or population; remove it or use --out")
        stored.write_text(told)

    def _header(self) -> dict[str, Any]:
        described = dict(self.session.bench.describe())
        return {
            "format": FORMAT,
            "model": self.args.model,
            "rung": self.args.rung,
            "task": self.session.task.describe(),
            "split": "heldout",
            "seed": self.args.seed,
            "measured_on": described,
            "shape": [int(count) for count in self.session.bench.shape.per_frame],
            "layers": self.session.bench.shape.layers,
            "cells": [cell.to_dict() for cell in self.cells],
            "timed": [cell.to_dict() for cell in [*self.cells, *self.anchors]],
            "examples": [{"id": e.id, "group": e.group, "kind": e.kind} for e in self.examples],
        }

    def score(self) -> None:
        """Every configuration on every clip."""
        left = [number for number in range(len(self.clips)) if not self._clip_file(number).exists()]
        began = time.perf_counter()
        for done, number in enumerate(left, start=1):
            rows = [self._row(policy, self.clips[number]) for policy in [None, *(cell.policy for cell in self.cells)]]
            # through an open file: savez would add .npz to another name; the rename makes a part whole or absent
            part = self._clip_file(number).with_suffix(".tmp")
            with part.open("wb") as stream:
                np.savez(stream, rows=np.array(rows))
            part.rename(self._clip_file(number))
            progress("scored clips", done, len(left), began)

    def _clip_file(self, number: int) -> Path:
        return self.parts / f"clip-{number:05d}.npz"

    def _row(self, policy: Policy | None, asked: list[Example]) -> list[list[float]]:
        outcomes = list(self.session.bench.score(policy, asked))
        assert all(outcome.p_gold is not None for outcome in outcomes)
        return [[float(getattr(o, name)) for o in outcomes] for name in ("p_gold", "correct", "retention_ratio")]

    def time(self, sweeps: int) -> None:
        """Pairs of every configuration in several passes in random order, so that no burst of load hits one alone."""
        timed = [*self.cells, *self.anchors]
        bench = Recorder(self.session.bench)
        timer = PairedTimer(bench, "ttft")
        began = time.perf_counter()
        for sweep in range(sweeps):
            order = np.random.default_rng(sweep).permutation(len(timed))
            file = self.parts / f"times-{sweep}.jsonl"
            done = {json.loads(line)["at"] for line in file.read_text().splitlines()} if file.exists() else set()
            left = [int(at) for at in order if int(at) not in done]
            with file.open("a", encoding="utf-8") as lines:
                for number, at in enumerate(left, start=1):
                    pairs = self._pairs(timer, bench, timed[at])
                    line = {"at": at, "load": os.getloadavg()[0], "pairs": pairs}
                    lines.write(json.dumps(line) + "\n")
                    lines.flush()
                    progress(f"timed, sweep {sweep + 1} of {sweeps}", number, len(left), began)
            began = time.perf_counter()

    def _pairs(self, timer: PairedTimer, bench: "Recorder", cell: Cell) -> list[list[float]]:
        """Milliseconds of each pair: wall uncompressed, wall policy, processor uncompressed, processor policy."""
        bench.runs.clear()
        # a half-width of zero is never reached: all the pairs are recorded, however steady they are
        rules = TimingRules(
            warmup=1, min_pairs=SWEEP_PAIRS, max_pairs=SWEEP_PAIRS, max_seconds=600.0, half_width_ratio=0.0
        )
        timer.measure(cell.policy, rules)
        # what came before the last pairs was warm-up
        sides = [
            [(wall, cpu) for is_policy, wall, cpu in bench.runs if is_policy is side][-SWEEP_PAIRS:]
            for side in (False, True)
        ]
        return [
            [round(ms, 4) for ms in (base[0], ours[0], base[1], ours[1])] for base, ours in zip(*sides, strict=True)
        ]

    def pack(self) -> None:
        """Write the matrix of all scored clips and all recorded pairs."""
        scores, scored = self._scores()
        if scores is None:
            print("nothing scored yet; nothing packed")
            return
        header = self._header()
        header["examples"] = [example for example in header["examples"] if example["id"] in scored]
        header["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        times, loads = self._times(len(header["timed"]))
        header["load_average"] = [min(loads), float(np.median(loads)), max(loads)] if loads else None
        p_gold, correct, attained = scores
        Matrix(header=header, p_gold=p_gold, correct=correct, attained=attained, times_ms=times).save(self.out)
        size = self.out.stat().st_size
        print(f"wrote {self.out}: {len(self.cells)} configurations x {len(scored)} examples, {size} bytes")

    def _scores(self) -> tuple[tuple[np.ndarray, ...] | None, set[str]]:
        """`p_gold`, `correct` and `attained`, and which examples they are of: the parts', else the packed file's.

        The second lets a quiet machine time what another one scored.
        """
        files = sorted(self.parts.glob("clip-*.npz"))
        if files:
            rows = np.concatenate([np.load(file)["rows"] for file in files], axis=2)
            scored = {example.id for file in files for example in self.clips[int(file.stem[-5:])]}
            return (rows[:, 0], rows[:, 1], rows[:, 2]), scored
        if not self.out.exists():
            return None, set()
        packed = Matrix.load(self.out)
        if packed.header["cells"] != self._header()["cells"]:
            raise SystemExit(f"{self.out}: was scored with another grid; remove it or use --out")
        scored = {example["id"] for example in packed.header["examples"]}
        return (packed.p_gold, packed.correct, packed.attained), scored

    def _times(self, count: int) -> tuple[np.ndarray, list[float]]:
        files = sorted(self.parts.glob("times-*.jsonl"))
        times = np.full((4, count, SWEEP_PAIRS * len(files)), np.nan)
        loads = []
        for sweep, file in enumerate(files):
            for line in map(json.loads, file.read_text().splitlines()):
                columns = slice(sweep * SWEEP_PAIRS, (sweep + 1) * SWEEP_PAIRS)
                times[:, line["at"], columns] = np.array(line["pairs"]).T
                loads.append(line["load"])
        return times, loads


class Recorder:
    """A bench that remembers the milliseconds of every run, on the wall and of this thread on the processor."""

    def __init__(self, bench: Any) -> None:
        self._bench = bench
        self.runs: list[tuple[bool, float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def timed(self, policy: Policy | None, clip_index: int, metric: Any) -> Any:
        """As the bench, and remembered."""
        start = time.thread_time()
        parts = self._bench.timed(policy, clip_index, metric)
        self.runs.append((policy is not None, parts[f"{metric}_ms"], 1e3 * (time.thread_time() - start)))
        return parts


def progress(what: str, done: int, total: int, began: float) -> None:
    """One line with the time that is left."""
    left = (time.perf_counter() - began) / done * (total - done)
    if done == total or done % max(1, total // 100) == 0:
        print(f"{what} {done}/{total}, {left / 60:.1f} min left, load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
