"""What a mini model's card says beyond accuracy: what its layers are worth, where its time goes, what policies gain."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from card_parts.promises import Promise
from vidsieve import load_policy
from vidsieve.bundled import thresholds
from vidsieve.bundled.bundled_models import BundledModel
from vidsieve.framework import registry
from vidsieve.framework.task import Example
from vidsieve.harness.model_bench import Workbench

TABLE = Path(__file__).resolve().parent.parent / "data" / "policy_table.json"
CONTROLS = ("none", "random", "uniform-frames")
QUARTER = 0.25
TIMED_RUNS = 8
FROM_TABLE = "not in the policy table yet"


class Mini:
    """A mini model on its bench; `measure` first."""

    def __init__(self, bench: Workbench, entry: BundledModel, table: Path = TABLE) -> None:
        self.bench, self.entry = bench, entry
        self.table = json.loads(table.read_text(encoding="utf-8"))["cells"]
        self.cells = [c for c in self.table.values() if c["model"] == entry.name and c["ratio"] == QUARTER]
        self.worth: list[float] = []
        self.ttft_ms = self.tower_share = 0.0

    def measure(self, examples: Sequence[Example]) -> None:
        """Accuracy without each layer in turn, and the vision tower's share of the time to the first token."""
        whole = self._correct(examples)
        for layer in self._layers():
            with _idle(layer):
                self.worth.append(whole - self._correct(examples))
        runs = [self.bench.timed(None, run % self.bench.clips, "ttft") for run in range(TIMED_RUNS + 1)][1:]
        self.ttft_ms = median(run["ttft_ms"] for run in runs)
        self.tower_share = median(run["vision_ms"] / run["ttft_ms"] for run in runs)

    def lines(self) -> list[str]:
        """The tables."""
        cells = " | ".join(f"{100 * worth:.1f}" for worth in self.worth)
        return [
            "",
            "### What each layer is worth",
            "",
            "Points of accuracy that leaving one decoder layer out costs (static rung, all tokens, seed 0).",
            "",
            f"| layer | {' | '.join(map(str, range(len(self.worth))))} |",
            "|---" * (len(self.worth) + 1) + "|",
            f"| cost | {cells} |",
            "",
            "### Where the time goes",
            "",
            f"Uncompressed, {self.bench.describe().get('threads', '?')} thread: {self.ttft_ms:.0f} ms to the first "
            f"token, {100 * self.tower_share:.0f} % of it in the vision tower.",
        ]

    def promises(self) -> list[Promise]:
        """The thresholds that accuracy alone does not decide."""
        size_bytes = (self.entry.folder / "model.safetensors").stat().st_size
        return [
            *self._best(),
            self._inside(),
            Promise("every layer's worth", min(self.worth), least=thresholds.MINI_LAYER_WORTH_LEAST),
            Promise("the vision tower's share of TTFT", self.tower_share, most=thresholds.MINI_TOWER_SHARE_MOST),
            Promise("weights, per cent of 12 MB", size_bytes / thresholds.MINI_WEIGHTS_BYTES_MOST, most=1.0),
        ]

    def _correct(self, examples: Sequence[Example]) -> float:
        outcomes = list(self.bench.score(None, examples))
        return sum(outcome.correct for outcome in outcomes) / len(outcomes)

    def _layers(self) -> Sequence[Any]:
        return self.bench.loaded.model.model.language_model.layers

    def _static(self, policy: str) -> float | None:
        """Share of right answers on the static rung at a quarter of the tokens."""
        return _share(self.table.get(f"{self.entry.name} {policy} {QUARTER:g} static"))

    def _best(self) -> list[Promise]:
        """The best published policy at a quarter of the tokens: what it loses, and the time it takes."""
        bounds = (thresholds.MINI_BEST_LOSS_MOST, thresholds.MINI_BEST_TTFT_MOST)
        published = [name for name in registry.default().policies if name not in CONTROLS]
        shares = {name: share for name in published if (share := self._static(name)) is not None}
        whole = _share(self.table.get(f"{self.entry.name} none own static"))
        if not shares or whole is None:
            what = ("the best policy at 25 % below all tokens", "its TTFT, per cent of uncompressed")
            return [Promise(name, None, most=most, absent=FROM_TABLE) for name, most in zip(what, bounds, strict=True)]
        best = max(shares, key=lambda name: shares[name])
        timed = [cell for cell in self.cells if cell["policy"] == best and "ttft_ratio" in cell]
        ratio = timed[0]["ttft_ratio"]["value"] if timed else None
        return [
            Promise(f"the best policy at 25 % ({best}) below all tokens", whole - shares[best], most=bounds[0]),
            Promise(f"TTFT of {best}, per cent of uncompressed", ratio, most=bounds[1], absent=FROM_TABLE),
        ]

    def _inside(self) -> Promise:
        """The largest retention among methods inside the language model that were asked for a quarter."""
        what, most = "what methods inside the language model attain of the 25 % asked", thresholds.MINI_LAYERS_RETENTION
        attained = []
        for name, policy in registry.default().policies.items():
            if not load_policy(name).layer_stages or load_policy(name).retention_ratio is None:
                continue
            found = [cell for cell in self.cells if cell["policy"] == name and "over_layers" in cell]
            if not found:
                return Promise(what, None, most=most, absent=f"{policy.name}: {FROM_TABLE}, or out of reach")
            attained.append(found[0]["over_layers"])
        return Promise(what, max(attained), most=most + 5e-4)


def _share(cell: Mapping[str, Any] | None) -> float | None:
    """Right answers of a stored cell; None where it has none."""
    if cell is None or "clips" not in cell:
        return None
    marks = "".join(cell["clips"])
    return marks.count("1") / len(marks)


@contextmanager
def _idle(layer: Any) -> Iterator[None]:
    """A decoder layer that fills its cache and adds nothing to the residual stream."""
    handle = layer.register_forward_hook(lambda module, args, kwargs, output: _same(args, kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _same(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs["hidden_states"]
