"""The request of a search, checked when it is made."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from vidsieve.framework.errors import UsageError
from vidsieve.framework.settings_field import setting

_SEARCH = "Search"

Metric = Literal["ttft", "e2e"]
"""`ttft`: processor outputs on the device to first token. `e2e`: from the file to the last new token."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """The settings of a search, with exactly one target: `latency_ms` of `metric`, or `speedup` (baseline ÷ target).

    `max_drop_points` is the accuracy drop to certify, in percentage points. `examples` choose, `heldout_examples`
    (default: twice as many) only judge the final policy. `data_seed` chooses the examples and is apart from `seed`, so
    that tuning again with another seed does not shuffle held-out examples into the search. `storage` is where the
    study lives and is resumed from: a path (SQLite, under a lock), a URL of a server that several tuners may share, or
    an Optuna storage; None keeps it in memory. `fresh` sets an existing file aside and starts anew; `join` adds trials
    to another tuner's study on a server and leaves the verdict to that one. `patience` trials without a new best end
    the search early. `rerank_examples` (default: twice `examples`) rank the leaders once more. `skip_bad` resumes a
    study whose data has lost files since, on the examples that are left.

    Raises:
        UsageError: a value out of range, no target, or two.
    """

    latency_ms: float | None = setting(None, _SEARCH, "Target: milliseconds of the metric.")
    speedup: float | None = setting(None, _SEARCH, "Target: how many times faster, such as 2.")
    metric: Metric = setting(
        "ttft", _SEARCH, "ttft: processor outputs on the device to first token. e2e: from the file to the last token."
    )
    max_drop_points: float = setting(1.0, _SEARCH, "Accuracy drop to certify, in percentage points.", flag="max-drop")
    trials: int = setting(30, _SEARCH, "Candidates to try at most.")
    patience: int = setting(12, _SEARCH, "Trials without a new best that end the search.")
    examples: int = setting(200, _SEARCH, "Examples to choose by; twice as many judge the result.")
    time_budget_s: float | None = setting(None, _SEARCH, "Seconds for everything.", flag="time-budget")
    seed: int = setting(0, _SEARCH, "Of the search.")
    heldout_examples: int | None = None
    data_seed: int = 0
    storage: Any = None
    rerank_examples: int | None = None
    study_name: str = "vidsieve"
    fresh: bool = False
    join: bool = False
    parallel: int = 1
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if (self.latency_ms is None) == (self.speedup is None):
            raise UsageError("target: give exactly one of `latency_ms` and `speedup`.")
        self._check("`latency_ms`", self.latency_ms, 0, "milliseconds, such as 200")
        self._check("`speedup`", self.speedup, 1, "how many times faster, such as 2; 1 is the uncompressed model")
        self._check("`time_budget_s`", self.time_budget_s, 0, "seconds")
        if not (math.isfinite(self.max_drop_points) and 0 <= self.max_drop_points <= 100):
            raise UsageError(f"`max_drop_points`: must be 0 to 100 percentage points, got {self.max_drop_points!r}.")
        for name, count, least in (
            ("`trials`", self.trials, 1),
            ("`examples`", self.examples, 2),
            ("held-out examples", self.heldout_count, 2),
            ("`patience`", self.patience, 1),
            ("re-rank examples", self.rerank_count, 2),
        ):
            if count < least:
                raise UsageError(f"{name}: must be at least {least}, got {count}.")
        if self.join and not (isinstance(self.storage, str) and not self.storage.startswith("sqlite:")):
            raise UsageError("`join`: needs `storage` with the URL of a server (postgresql://..., grpc://host:port).")
        if self.join and self.fresh:
            raise UsageError("`join` and `fresh`: exclude each other; give one of them.")
        if self.metric not in ("ttft", "e2e"):
            raise UsageError(f"`metric`: must be ttft or e2e, got {self.metric!r}.")

    @staticmethod
    def _check(name: str, value: float | None, above: float, unit: str) -> None:
        if value is not None and not (math.isfinite(value) and value > above):
            raise UsageError(f"{name}: must be a number above {above}, got {value!r} ({unit}).")

    @property
    def heldout_count(self) -> int:
        """Number of held-out examples to request of the task."""
        return 2 * self.examples if self.heldout_examples is None else self.heldout_examples

    @property
    def rerank_count(self) -> int:
        """Number of re-rank examples to request of the task."""
        return 2 * self.examples if self.rerank_examples is None else self.rerank_examples

    def target_ms(self, baseline_ms: float) -> float:
        """Compute the target in milliseconds from the uncompressed model's median."""
        return self.latency_ms if self.latency_ms is not None else baseline_ms / (self.speedup or 1.0)
