"""Measure a bundled model and print its card: python scripts/bundled_card.py --model qwen2-vl-tiny

All numbers come from `model.generate` under `vidsieve.applied`, on clips of the held-out split. `--write` also stores
the card beside the weights. About twenty minutes a model on one core.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

import vidsieve
from vidsieve.bundled import thresholds
from vidsieve.bundled.bundled_models import BundledModel, get
from vidsieve.bundled.bundled_task import BundledTask, write_dataset
from vidsieve.bundled.scene import RUNGS
from vidsieve.bundled.words import KINDS, OPTIONS
from vidsieve.framework.errors import RetentionError
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Example
from vidsieve.media import Clip, load_processor, read_video, write_video

PER_BATCH = 2 * len(KINDS)
TOKENS_PER_FRAME = 36
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
    """A bundled model with its processor; asks examples and counts right answers."""

    def __init__(self, entry: BundledModel, clips: int) -> None:
        self.entry, self.count = entry, clips * len(KINDS)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(entry.folder).eval()
        self.processor = load_processor(entry.folder, self.model.config, prefer_hf=False)
        layers = self.model.config.get_text_config().num_hidden_layers
        self.shape = VideoShape(entry.visual_tokens // TOKENS_PER_FRAME, TOKENS_PER_FRAME, layers)
        self._drawn: dict[tuple[str, int], list[Example]] = {}

    def examples(self, rung: str, seed: int) -> list[Example]:
        """Held-out clips in memory."""
        if (rung, seed) not in self._drawn:
            task = BundledTask(rung, frame_count=self.entry.frame_count)
            self._drawn[rung, seed] = task.examples("heldout", self.count, seed=seed)
        return self._drawn[rung, seed]

    def right(self, examples: Sequence[Example], policy: Any = None) -> tuple[list[bool], float]:
        """Whether each answer is right, and the retention ratio attained."""
        policy = policy or vidsieve.load_policy("none")
        verdicts: list[bool] = []
        with torch.no_grad(), vidsieve.applied(self.model, policy) as handle:
            for batch in _batches(examples):
                inputs = self.processor.build_inputs([one.question for one in batch], [[_clip(one)] for one in batch])
                sequences = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
                answers = self.processor.tokenizer.batch_decode(sequences, skip_special_tokens=True)
                verdicts += [said.strip() == one.answer for said, one in zip(answers, batch, strict=True)]
            ratios = [report.attained_ratio for report in handle.reports]
        return verdicts, sum(ratios) / len(ratios) if ratios else 1.0

    def cell(self, rung: str, name: str, ratio: float | None) -> Cell:
        """One policy at one ratio (None: as published) on one rung."""
        policy = vidsieve.load_policy(name)
        low, high = policy.attainable(self.shape)
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
                task = BundledTask(rung)
                filed = write_dataset(task, "heldout", self.count, Path(folder), write_video=write_video, seed=seed)
                verdicts, _ = self.right([self._read(one) for one in filed])
            shares.append(sum(verdicts) / len(verdicts))
        return Cell(tuple(shares))

    def _read(self, example: Example) -> Example:
        assert example.video is not None
        clip = read_video(example.video, frames=self.entry.frame_count)
        fields = {name: getattr(example, name) for name in ("id", "group", "question", "options", "answer", "kind")}
        return Example(**fields, frames=clip.frames, fps=clip.sampled_fps)

    def by_kind(self, rung: str) -> dict[str, float]:
        """All tokens: share of right answers for each kind of question, over all seeds."""
        examples = [one for seed in thresholds.TABLE_SEEDS for one in self.examples(rung, seed)]
        verdicts, _ = self.right(examples)
        pairs = list(zip(examples, verdicts, strict=True))
        of_kind = {kind: [right for one, right in pairs if one.kind == kind] for kind in KINDS}
        return {kind: sum(rights) / len(rights) for kind, rights in of_kind.items()}


def _batches(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), PER_BATCH):
        yield examples[start : start + PER_BATCH]


def _clip(example: Example) -> Clip:
    assert example.frames is not None
    assert example.fps is not None
    return Clip.from_frames(example.frames, fps=example.fps)


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


def verdicts(cells: dict[tuple[str, float], Cell], memory: Cell, codec: Cell) -> list[str]:
    """Each threshold with what was measured."""
    full, chance = memory.mean, cells["random", 0.25].mean
    vidcom2 = cells["vidcom2", 0.25].mean
    rows = [
        ("all tokens at least", full, thresholds.FULL_LEAST),
        ("all tokens above random at 25 % by at least", full - chance, thresholds.RANDOM_DROP_LEAST),
        ("vidcom2 above random, both at 25 %, by at least", vidcom2 - chance, thresholds.VIDCOM2_GAIN_LEAST),
    ]
    lines = [
        f"- {what} {100 * wanted:.0f}: measured {100 * came:.1f}, {'met' if came >= wanted else '**missed**'}"
        for what, came, wanted in rows
    ]
    loss = abs(full - codec.mean)
    kept = "met" if loss <= thresholds.CODEC_LOSS_MOST else "**missed**"
    most = 100 * thresholds.CODEC_LOSS_MOST
    return [*lines, f"- memory and H.264 apart by at most {most:.0f}: measured {100 * loss:.1f}, {kept}"]


def measured(examiner: Examiner, clips: int) -> list[str]:
    """The measured half of the card."""
    guess = sum(1 / len(OPTIONS[kind]) for kind in KINDS) / len(KINDS)
    lines = [
        f"Per cent of right answers on {clips} held-out clips ({clips * len(KINDS)} questions) a seed: mean (seed 0 / "
        f"seed 1). Guessing gives {100 * guess:.0f}. float32, CPU, `generate` under `vidsieve.applied`.",
    ]
    codec_lines = ["| rung | in memory | H.264 |", "|---|---|---|"]
    kind_lines = [f"| rung | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    for rung in RUNGS:
        table, cells = policy_table(examiner, rung)
        lines += ["", f"### {rung}", "", *table]
        memory, codec = cells["none", 1.0], examiner.through_codec(rung)
        codec_lines.append(f"| {rung} | {memory} | {codec} |")
        kinds = examiner.by_kind(rung)
        kind_lines.append(f"| {rung} | {' | '.join(f'{100 * kinds[kind]:.1f}' for kind in KINDS)} |")
        if rung == "static":
            promised = verdicts(cells, memory, codec)
    lines += ["", "### All tokens, by kind of question", "", *kind_lines]
    lines += ["", "### Through a video file", "", "H.264, yuv420p, CRF 18.", "", *codec_lines]
    return [*lines, "", "### Thresholds (static rung, points)", "", *promised]


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
    text = "\n".join([about, "", MEASURED, "", command, "", *measured(Examiner(entry, chosen.clips), chosen.clips)])
    print(text)
    if chosen.write:
        entry.card.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
