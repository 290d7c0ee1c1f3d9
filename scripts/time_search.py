"""Time the scoring of a search in four ways that must find the same: what each clip and each prompt costs in them.

    python scripts/time_search.py                                   a bundled model on clips that are written for it
    python scripts/time_search.py --model qwen2-vl --trials 20 --examples 60

Clips are encoded every time, once, or once in an earlier run, with every prompt run whole; then with one prefill a
video, as `vidsieve tune` does it. Each way runs the same search: latencies are a formula of the retention ratio, so
that all try the same candidates whatever the machine does meanwhile; everything else is what `vidsieve tune` does, in
this process. Printed are the seconds in which examples were scored, passes of the vision tower, clips decoded,
prefills, their rows and tokens meanwhile, and whether the values of the trials are equal to those of the first way
(scores within 1e-5).
"""

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from vidsieve.bundled.bundled_task import BundledTask, write_dataset
from vidsieve.framework.registry import default
from vidsieve.framework.task import Example, Outcome
from vidsieve.harness.data.user_data import LabelledData
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import Loaded, load
from vidsieve.harness.search_entry import search
from vidsieve.harness.session import Session
from vidsieve.harness.setup import Setup
from vidsieve.media import video, write_video
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import TuneResult

SHARE = 0.3
"""Of the uncompressed latency that is not the language model's reading of visual tokens, in the formula."""


class CountingBench(Workbench):
    """Takes its latencies from a formula, and notes what scoring costs."""

    def watch(self) -> "CountingBench":
        """Count from now on."""
        self.counted: Counter[str] = Counter()
        self.scoring_s = 0.0
        base, tower = self.loaded.model.base_model, self.loaded.adapter.tower
        getattr(base, "visual" if tower is None else tower.part).register_forward_pre_hook(self._passed)
        self.loaded.model.get_decoder().register_forward_pre_hook(self._prefilled, with_kwargs=True)
        return self

    def _passed(self, *call: Any) -> None:
        self.counted["tower passes"] += 1

    def _prefilled(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        embedded = kwargs["inputs_embeds"]
        if embedded.shape[1] > 1:
            self.counted["prefills"] += 1
            self.counted["rows"] += embedded.shape[0]
            self.counted["tokens"] += embedded.shape[0] * embedded.shape[1]

    def timed(self, policy: Any, clip_index: int, metric: Any) -> dict[str, float]:
        """Return the milliseconds of the formula."""
        ratio = 1.0 if policy is None else getattr(policy, "retention_ratio", None) or getattr(policy, "ratio", 1.0)
        return {f"{metric}_ms": 100.0 * (SHARE + (1 - SHARE) * ratio)}

    def score(self, policy: Any, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Yield as a workbench does, with the clock running while it works."""
        outcomes = super().score(policy, examples)
        while True:
            start = time.perf_counter()
            outcome = next(outcomes, None)
            self.scoring_s += time.perf_counter() - start
            if outcome is None:
                return
            yield outcome


def run(loaded: Loaded, setup: Setup, task: LabelledData, request: TuneRequest) -> tuple[CountingBench, TuneResult]:
    """Search once."""
    read = video.read_video
    bench = CountingBench.of_task(loaded, setup, task)
    assert isinstance(bench, CountingBench)
    bench.watch()

    @wraps(read)
    def reading(*args: Any, **kwargs: Any) -> Any:
        bench.counted["decoded"] += 1
        return read(*args, **kwargs)

    setattr(video, "read_video", reading)  # noqa: B010  # for the count, and put back
    try:
        session = Session(setup=setup, task=task, loaded=loaded, bench=bench)
        return bench, search(session, request, default())
    finally:
        setattr(video, "read_video", read)  # noqa: B010


def values(result: TuneResult) -> list[Any]:
    """What the trials found, without latencies."""
    return [(t.score, t.policy, t.retention_ratio, dict(t.settings), t.scored, t.verdict) for t in result.trials]


def alike(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether trials found the same; a batch rounds otherwise than a prompt alone."""
    rows = list(zip(some, others, strict=False))
    scores = [(one[0], other[0]) for one, other in rows if None not in (one[0], other[0])]
    same = len(some) == len(others) and all(one[1:] == other[1:] for one, other in rows)
    return same and all(math.isclose(*pair, abs_tol=1e-5) for pair in scores)


def main(words: Sequence[str] | None = None) -> int:
    """Print one row a way; 1 if trial values differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2-vl")
    parser.add_argument("--data", help="questions about videos, as `vidsieve tune` takes them; left out: written here")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--examples", type=int, default=36)
    parser.add_argument("--batch-size", type=int, default=None)
    given = parser.parse_args(words)
    choice = choose(given.model, None, default())
    if choice.bundled is None and given.data is None:
        parser.error(f"--data: {choice.name} is no bundled model, so it needs questions of yours (a JSONL file).")
    request = TuneRequest(speedup=1.6, trials=given.trials, patience=given.trials, examples=given.examples)
    with tempfile.TemporaryDirectory() as folder:
        if choice.bundled is not None and given.data is None:
            task = BundledTask("static", frame_count=choice.bundled.frame_count, shape=choice.bundled.shape)
            write_dataset(task, "heldout", 6 * given.examples, folder, write_video=write_video)
        data = LabelledData(given.data or Path(folder) / "examples.jsonl")
        setup = Setup(model=given.model, batch_size=given.batch_size, feature_store=f"{folder}/store")
        whole = replace(setup, whole_prompts=True)
        ways = {
            "every time": replace(whole, feature_store="off"),
            "once": whole,
            "once, in an earlier run": whole,
            "the same, with one prefill a video": setup,
        }
        print("| clips encoded | scoring, s | tower passes | decoded | prefills | rows | tokens | trial values |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        first: list[Any] | None = None
        differs = False
        for way, chosen in ways.items():
            bench, result = run(load(choice, chosen, default()), chosen, data, request)
            found, counted = values(result), bench.counted
            same = "" if first is None else "equal" if alike(found, first) else "DIFFERENT"
            differs |= same == "DIFFERENT"
            first = found if first is None else first
            shown = [counted[name] for name in ("tower passes", "decoded", "prefills", "rows", "tokens")]
            cells = [way, f"{bench.scoring_s:.1f}", *map(str, shown), same or f"{len(found)} trials"]
            print(f"| {' | '.join(cells)} |", flush=True)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
