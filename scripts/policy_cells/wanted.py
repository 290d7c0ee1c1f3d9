"""Which cells the table has: every policy on every model at every ratio, on each rung and timed to the first token.

At a quarter of the tokens the whole request is timed too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vidsieve import load_policy
from vidsieve.bundled.bundled_models import MODELS
from vidsieve.bundled.bundled_task import GENERATOR
from vidsieve.bundled.scene import RUNGS
from vidsieve.bundled.thresholds import TABLE_RATIOS
from vidsieve.framework import registry
from vidsieve.framework.errors import UnknownNameError
from vidsieve.harness.model_loading import fingerprint
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measured import PROTOCOL

MODEL_NAMES = tuple({model.family: model.name for model in reversed(MODELS)}.values())[::-1]
"""The bundled models that stand for their families."""
TTFT, REQUEST = "ttft", "e2e"
TIMED = (TTFT, REQUEST)
REQUEST_RATIO = 0.25
TIMED_RUNG = "cuts"
RULES = TimingRules(warmup=3, min_pairs=16, max_pairs=64, max_seconds=4.0, half_width_ratio=0.02)
"""Of one timed cell: at most four seconds and a warm-up, so that a table of 30 policies takes minutes."""


@dataclass(frozen=True)
class Cell:
    """One number of the table: a policy at a ratio (None: as published) on a model, on a rung, `ttft` or `e2e`."""

    model: str
    policy: str
    ratio: float | None
    what: str
    key: str
    """What the number depends on. A stored cell with another key is measured again."""

    @property
    def name(self) -> str:
        """Its place in the table."""
        return f"{self.model} {self.policy} {'own' if self.ratio is None else f'{self.ratio:g}'} {self.what}"


def policies(names: Sequence[str] = ()) -> list[str]:
    """The policies asked for, or all that are published, `none` first. Raises UnknownNameError."""
    published = sorted(registry.default().policies, key=lambda name: (name != "none", name))
    for name in names:
        if name not in published:
            raise UnknownNameError("--policies", "policy", name, published)
    return [name for name in published if name in names or not names]


def ratios(policy: str) -> tuple[float | None, ...]:
    """Those of the table; a policy whose counts its file fixes has its own alone."""
    return TABLE_RATIOS if load_policy(policy).retention_ratio is not None else (None,)


def cells(models: Sequence[str], names: Sequence[str], questions: int, seed: int) -> list[Cell]:
    """All cells, those that share a model and a rung behind each other, timed ones last."""
    asked = [(name, ratio, load_policy(name, retention_ratio=ratio).hash) for name in names for ratio in ratios(name)]
    scored = f"{questions} questions, seed {seed}, generator {GENERATOR}"
    timed = f"{PROTOCOL}, {TIMED_RUNG}, seed {seed}, generator {GENERATOR}, {RULES}"
    found = []
    for what, settings in [*((rung, scored) for rung in RUNGS), *((clock, timed) for clock in TIMED)]:
        for model in models:
            revision = fingerprint(next(one.folder for one in MODELS if one.name == model))
            found += [
                Cell(model, name, ratio, what, f"{made}, {revision}, {settings}")
                for name, ratio, made in asked
                if what != REQUEST or ratio == REQUEST_RATIO
            ]
    return sorted(found, key=lambda cell: cell.what in TIMED)
