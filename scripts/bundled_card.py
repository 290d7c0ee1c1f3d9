"""Measure a bundled model and print its card: python scripts/bundled_card.py --model qwen2-vl-mini

Accuracy comes from the bench that `tune` scores with, on clips of the held-out split: an answer is right where its
first token is the most probable among the options. `--write` also stores the card beside the weights. About twenty
minutes a model on one core; a mini model's lines on all published policies are read from the policy table, made before.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from card_parts.mini_promises import Mini
from card_parts.promises import Promise, written

import vidsieve
from vidsieve.bundled import thresholds
from vidsieve.bundled.bundled_models import BundledModel, get
from vidsieve.bundled.bundled_task import BundledTask, write_dataset
from vidsieve.bundled.scene import RUNGS
from vidsieve.bundled.shapes import TINY
from vidsieve.framework import registry
from vidsieve.framework.errors import RetentionError
from vidsieve.framework.task import Example
from vidsieve.harness.session import open_session
from vidsieve.harness.setup import Setup
from vidsieve.media import write_video

MEASURED = "## Measured"
"""Everything in a card from this heading on is written by this script."""


@dataclass(frozen=True)
class Cell:
    """Share of right answers, one a seed, and the retention ratio that was attained; or why there is none."""

    shares: tuple[float, ...] = ()
    attained: float = 1.0
    missing: str = ""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.shares) / len(self.shares)

    def __str__(self) -> str:
        if self.missing:
            return self.missing
        each = " / ".join(f"{100 * share:.1f}" for share in self.shares)
        return f"**{100 * self.mean:.1f}** ({each})"


class Examiner:
    """A bundled model on its bench; asks examples and counts right answers."""

    def __init__(self, entry: BundledModel, clips: int) -> None:
        self.entry, self.shape, self.clips = entry, entry.shape, clips
        self.count = clips * len(self.shape.kinds)
        self.bench = open_session(Setup(model=entry.name), registry.default()).bench
        self._drawn: dict[tuple[str, int], list[Example]] = {}

    def examples(self, rung: str, seed: int) -> list[Example]:
        """Held-out clips in memory."""
        if (rung, seed) not in self._drawn:
            task = BundledTask(rung, frame_count=self.entry.frame_count, shape=self.shape)
            self._drawn[rung, seed] = task.examples("heldout", self.count, seed=seed)
        return self._drawn[rung, seed]

    def right(self, examples: Sequence[Example], policy: Any = None) -> tuple[list[bool], float]:
        """Whether each answer is right, and the retention ratio attained."""
        outcomes = list(self.bench.score(policy, examples))
        ratios = [outcome.retention_ratio or 0.0 for outcome in outcomes]
        return [outcome.correct == 1.0 for outcome in outcomes], sum(ratios) / len(ratios)

    def cell(self, rung: str, name: str, ratio: float | None) -> Cell:
        """One policy at one ratio (None: as published) on one rung."""
        policy = vidsieve.load_policy(name)
        low, high = policy.attainable(self.bench.shape)
        try:
            if ratio is not None:
                policy = vidsieve.load_policy(name, retention_ratio=ratio)
            runs = [self.right(self.examples(rung, seed), policy) for seed in thresholds.TABLE_SEEDS]
        except RetentionError:
            reach = f"{100 * low:.0f} %" if high - low < 1e-9 else f"{100 * low:.0f} to {100 * high:.0f} %"
            return Cell(missing=f"n/a, reaches {reach}")
        shares = tuple(sum(verdicts) / len(verdicts) for verdicts, _ in runs)
        return Cell(shares, sum(attained for _, attained in runs) / len(runs))

    def through_codec(self, rung: str) -> Cell:
        """All tokens, the clips written as H.264 (yuv420p, CRF 18) and read back."""
        shares = []
        for seed in thresholds.TABLE_SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                # The whole clip is written, and thinned by reading: the way a user's file goes.
                task = BundledTask(rung, shape=self.shape)
                filed = write_dataset(task, "heldout", self.count, Path(folder), write_video=write_video, seed=seed)
                verdicts, _ = self.right(filed)
            shares.append(sum(verdicts) / len(verdicts))
        return Cell(tuple(shares))

    def by_kind(self, rung: str) -> dict[str, float]:
        """All tokens: share of right answers for each kind of question, over all seeds."""
        examples = [one for seed in thresholds.TABLE_SEEDS for one in self.examples(rung, seed)]
        verdicts, _ = self.right(examples)
        pairs = list(zip(examples, verdicts, strict=True))
        of_kind = {kind: [right for one, right in pairs if one.kind == kind] for kind in self.shape.kinds}
        return {kind: sum(rights) / len(rights) for kind, rights in of_kind.items()}


def policy_table(examiner: Examiner, rung: str) -> tuple[list[str], dict[tuple[str, float], Cell]]:
    """Lines of the rung's table, and its cells. `none` is the uncompressed model."""
    ratios = thresholds.TABLE_RATIOS
    heads = [f"{100 * ratio:.0f} %" for ratio in ratios]
    lines = [f"| policy | {' | '.join(heads)} | as published |", "|---" * (len(ratios) + 2) + "|"]
    cells: dict[tuple[str, float], Cell] = {}
    for name in thresholds.TABLE_POLICIES:
        own = examiner.cell(rung, name, None)
        if name == "none":
            cells[name, 1.0] = own
            lines.append(f"| {name} (all tokens) |{' |' * len(ratios)} {own} |")
            continue
        cells.update({(name, ratio): examiner.cell(rung, name, ratio) for ratio in ratios})
        row = " | ".join(str(cells[name, ratio]) for ratio in ratios)
        lines.append(f"| {name} | {row} | {own} at {100 * own.attained:.1f} % |")
    return lines, cells


def tiny_promises(cells: dict[tuple[str, float], Cell], memory: Cell, codec: Cell) -> list[Promise]:
    """What a tiny model must show."""
    full, chance = memory.mean, cells["random", 0.25].mean
    return [
        Promise("all tokens", full, least=thresholds.FULL_LEAST),
        Promise("all tokens above random at 25 %", full - chance, least=thresholds.RANDOM_DROP_LEAST),
        Promise(
            "vidcom2 above random, both at 25 %",
            cells["vidcom2", 0.25].mean - chance,
            least=thresholds.VIDCOM2_GAIN_LEAST,
        ),
        Promise("memory and H.264 apart", abs(full - codec.mean), most=thresholds.CODEC_LOSS_MOST),
    ]


def mini_promises(mini: Mini, cells: dict[tuple[str, float], Cell], memory: Cell, codec: Cell) -> list[Promise]:
    """What a mini model must show."""
    full, chance = memory.mean, cells["random", 0.25].mean
    return [
        Promise("all tokens", full, least=thresholds.MINI_FULL_LEAST),
        Promise("all tokens above random at 25 %", full - chance, least=thresholds.MINI_RANDOM_DROP_LEAST),
        Promise("memory and H.264 apart", abs(full - codec.mean), most=thresholds.MINI_CODEC_LOSS_MOST),
        *mini.promises(),
    ]


def measured(examiner: Examiner) -> list[str]:
    """The measured half of the card."""
    shape = examiner.shape
    guess = sum(1 / len(shape.options(kind)) for kind in shape.kinds) / len(shape.kinds)
    lines = [
        f"Per cent of right answers on {examiner.clips} held-out clips ({examiner.count} questions) a seed: mean (seed "
        f"0 / seed 1). Guessing gives {100 * guess:.0f}. float32, CPU, read at the first new token.",
    ]
    codec_lines = ["| rung | in memory | H.264 |", "|---|---|---|"]
    kind_lines = [f"| rung | {' | '.join(shape.kinds)} |", "|---" * (len(shape.kinds) + 1) + "|"]
    mini = None if shape.groups == TINY.groups else Mini(examiner.bench, examiner.entry)
    promised: list[Promise] = []
    for rung in RUNGS:
        table, cells = policy_table(examiner, rung)
        lines += ["", f"### {rung}", "", *table]
        memory, codec = cells["none", 1.0], examiner.through_codec(rung)
        codec_lines.append(f"| {rung} | {memory} | {codec} |")
        kinds = examiner.by_kind(rung)
        kind_lines.append(f"| {rung} | {' | '.join(f'{100 * kinds[kind]:.1f}' for kind in shape.kinds)} |")
        if rung == "static" and mini is None:
            promised = tiny_promises(cells, memory, codec)
        elif rung == "static" and mini is not None:
            mini.measure(examiner.examples(rung, thresholds.TABLE_SEEDS[0]))
            promised = mini_promises(mini, cells, memory, codec)
    lines += ["", "### All tokens, by kind of question", "", *kind_lines]
    lines += ["", "### Through a video file", "", "H.264, yuv420p, CRF 18.", "", *codec_lines]
    lines += [] if mini is None else mini.lines()
    return [*lines, "", "### Thresholds (static rung, points)", "", *written(promised)]


def main() -> None:
    """Print the card; with `--write` store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, help="a bundled model's name")
    parser.add_argument("--clips", type=int, default=32, help="clips a seed and rung")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="store the card beside the weights")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    entry = get(chosen.model)
    about = entry.card.read_text(encoding="utf-8").partition(MEASURED)[0].rstrip()
    command = f"Printed by `python scripts/bundled_card.py --model {entry.name} --clips {chosen.clips}`."
    text = "\n".join([about, "", MEASURED, "", command, "", *measured(Examiner(entry, chosen.clips))])
    print(text)
    if chosen.write:
        entry.card.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
