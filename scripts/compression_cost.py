"""Print what choosing costs: each published policy as a share of the time to the first token, and beside its loop form.

    python scripts/compression_cost.py                      everything; on two idle cores some ten minutes
    python scripts/compression_cost.py --policies divprune  one policy
    python scripts/compression_cost.py --write              the tables are stored, and quoted in the page, too

The share is that of a model of the bundled mini models' shape with random weights, which answers one question about
one clip: 64 frames, 2,048 visual tokens of width 128, twelve layers (28 for policies whose layers are numbered for a
deep model). It counts the time in the report, and what the hooks on the decoder take beside that. Each run is in turn
with one of the uncompressed model or of the loop, and ratios are medians over such pairs. All is processor time, of all
threads, so that neighbours on the machine count little.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from compression_loops import LOOPS
from torch import Tensor

from vidsieve import applied, load_policy
from vidsieve.adapters.decoder.layer_pruning import LayerPrune
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import sample_scenes
from vidsieve.bundled.seeds import rng_of
from vidsieve.bundled.shapes import QWEN2_VL_MINI
from vidsieve.bundled.train.configs import build_model
from vidsieve.bundled.train.vision import normalise, patches
from vidsieve.bundled.words import TOKEN_ID, token_ids
from vidsieve.framework import registry
from vidsieve.framework.errors import PolicyError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Stopwatch
from vidsieve.testing.samples import made_signals, video_features

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "scripts" / "data" / "compression_cost.md"
PAGE = ROOT / "docs" / "explanation" / "compression-cost.md"
START, END = "<!-- quoted from scripts/data/compression_cost.md -->\n", "<!-- end of quote -->\n"
SIZES = ((32, 64, 1024), (32, 196, 1024), (32, 64, 128), (32, 196, 128))
GOAL = 0.02
LONG_S = 2.0
"""Seconds after which no further pair of runs of a policy and its loop begins."""
DEEP = 28
"""Layers of the models that the released forms of methods name layers of."""


class Model:
    """A model of the mini shape with random weights, and one question about one clip."""

    def __init__(self, layers: int) -> None:
        shape = replace(QWEN2_VL_MINI, layers=layers)
        torch.manual_seed(0)
        self.model = build_model(shape).eval()
        rng = rng_of("cost", "cuts", 0)
        frames = render(sample_scenes(shape, "cuts", 1, rng), rng)
        video = TOKEN_ID["<|video_pad|>"]
        before, after = token_ids("<|user|> <|vision_start|>"), token_ids("<|vision_end|>")
        question = token_ids("what color is the last flash ? <|assistant|>")
        ids = torch.tensor([[*before, *[video] * shape.groups * shape.places, *after, *question]])
        side = shape.side // 8
        self.inputs: dict[str, Tensor] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": patches(normalise(frames))[0].flatten(0, 1),
            "video_grid_thw": torch.tensor([[shape.groups, side, side]]),
            "mm_token_type_ids": 2 * (ids == video).long(),
        }

    def first_token(self) -> float:
        """Milliseconds to the first token."""
        began = time.thread_time()
        with torch.no_grad():
            self.model.generate(**self.inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)
        return (time.thread_time() - began) * 1e3

    def pair(self, policy: Policy) -> tuple[float, float, float]:
        """Milliseconds to the uncompressed first token, of choosing, and to the first token under the policy."""
        plain = self.first_token()
        with applied(self.model, policy) as run, _hooks_timed() as hooks:
            total = self.first_token()
        inside = hooks[0] * 1e3
        outside = sum(watch.ms for watch in run.reports[-1].stopwatches[:1])
        return plain, inside + outside, total


@contextmanager
def _hooks_timed() -> Iterator[list[float]]:
    """Seconds that the hooks before decoder layers take, the stages that they ask included."""
    enter, spent = LayerPrune.enter, [0.0]

    def timed(self: LayerPrune, *args: Any) -> Any:
        began = time.thread_time()
        try:
            return enter(self, *args)
        finally:
            spent[0] += time.thread_time() - began

    # the report's clock is the wall's, which neighbours on the machine share
    with patch.object(LayerPrune, "enter", timed), patch.object(Stopwatch, "_mark", lambda _: time.thread_time()):
        yield spent


def shares(names: list[str], runs: int) -> str:
    """The table of shares of the time to the first token."""
    models: dict[int, Model] = {}
    rows = []
    for name in names:
        for layers in (QWEN2_VL_MINI.layers, DEEP):
            if layers not in models:
                models[layers] = Model(layers)
            model = models[layers]
            try:
                pairs = [model.pair(load_policy(name)) for _ in range(runs + 1)][1:]
            except PolicyError:
                continue
            rows.append((name, layers, pairs))
            print(f"\r{name:32}", end="", file=sys.stderr, flush=True)
            break
    lines = [
        "| policy | layers | choosing, ms | ÷ uncompressed TTFT | at most 2 % | TTFT ÷ uncompressed |",
        "|---|---|---|---|---|---|",
    ]
    for name, layers, pairs in rows:
        cost = statistics.median(cost for _, cost, _ in pairs)
        share = statistics.median(cost / plain for plain, cost, _ in pairs)
        ratio = statistics.median(total / plain for plain, _, total in pairs)
        met = "yes" if round(share, 3) <= GOAL else "no"
        lines.append(f"| {name} | {layers} | {cost:.1f} | {100 * share:.1f} % | {met} | {ratio:.2f} |")
    return "\n".join(lines)


def loops(names: list[str], size: tuple[int, int, int], threads: int, runs: int) -> str:
    """The table of one size: planning with a policy, and its loop."""
    torch.set_num_threads(threads)
    features = video_features(*size)
    question = torch.randn(6, size[2], generator=torch.Generator().manual_seed(1))
    signals = made_signals(["vision_attention", "pixel_difference"], *size[:2])
    lines = ["| policy | ms | loop, ms | loop ÷ policy |", "|---|---|---|---|"]
    for name in names:
        policy = load_policy(name)
        if policy.layer_stages or policy.frame_stages or name == "none":
            continue
        loop = LOOPS.get(name)
        count = round(size[0] * size[1] * (policy.retention_ratio or 0.25))

        def plan(policy: Policy = policy) -> object:
            return policy.plan(features, question=question, signals=signals)

        def plain(loop: Any = loop, count: int = count) -> object:
            return loop(features, count, question=question, attention=signals["vision_attention"])

        ours, theirs = _interleaved(plan, plain if loop else None, runs)
        text = f"| {name} | {statistics.median(ours):.1f} |"
        if theirs:
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            text += f" {statistics.median(theirs):.1f} | {ratio:.1f} |"
        lines.append(text if theirs else text + " | |")
        print(f"\r{name:32}", end="", file=sys.stderr, flush=True)
    torch.set_num_threads(1)
    return "\n".join(lines)


def _interleaved(
    plan: Callable[[], object], loop: Callable[[], object] | None, runs: int
) -> tuple[list[float], list[float]]:
    """Processor milliseconds of each, of all threads, in turn, after one that does not count unless it took long."""
    found: tuple[list[float], list[float]] = ([], [])
    started = time.process_time()
    for run in range(runs + 1):
        for number, one in enumerate((plan, loop)):
            if one is None:
                continue
            began = time.process_time()
            one()
            found[number].append((time.process_time() - began) * 1e3)
        if time.process_time() - started > LONG_S:
            break
        if run == 0:
            found = ([], [])
    return found


def head() -> str:
    """What the tables were made on."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return (
        f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; float32."
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def tables(names: list[str], runs: int, threads: list[int], only: str | None = None) -> str:
    """Everything, as Markdown, or `only` the shares, or only the loops."""
    torch.set_num_threads(1)
    parts = [head()]
    if only != "loops":
        parts.append(f"### Share of the time to the first token\n\n{shares(names, runs)}")
    for size in SIZES if only != "shares" else ():
        for count in threads:
            frames, tokens, dim = size
            title = f"### {frames} × {tokens} tokens of width {dim}, {count} thread{'s' if count > 1 else ''}"
            parts.append(f"{title}\n\n{loops(names, size, count, max(1, runs // 2))}")
    print("\r" + " " * 32, end="\r", file=sys.stderr)
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Measure, print, and with `--write` store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="", help="comma-separated; all that are published if left out")
    parser.add_argument("--runs", type=int, default=8, help="pairs of runs of each policy")
    parser.add_argument("--threads", default="1,2", help="comma-separated, of the tables beside loops")
    parser.add_argument("--only", choices=("shares", "loops"), help="one kind of table; both if left out")
    parser.add_argument("--write", action="store_true", help="store the tables, and quote them in the page")
    asked = parser.parse_args()
    published = sorted(registry.default().policies)
    names = [name for name in asked.policies.split(",") if name] or published
    if unknown := set(names) - set(published):
        parser.error(f"--policies: no published policy {', '.join(sorted(unknown))}; there are {', '.join(published)}")
    text = tables(names, asked.runs, [int(count) for count in asked.threads.split(",")], asked.only)
    print(text)
    if asked.write:
        DATA.write_text(text, encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        PAGE.write_text(f"{before}{START}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
