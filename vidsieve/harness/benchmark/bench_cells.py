"""The cells of a benchmark: each policy at each retention ratio, runnable or with the reason why not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import VidsieveError
from vidsieve.harness.benchmark.bench_settings import DEFAULT_POLICIES, BenchSettings

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.registry import Registry
    from vidsieve.tuner.measure.latency import Pairs

UNCOMPRESSED = "uncompressed"
MEASURES = ("ttft_ms", "tpot_ms", "e2e_ms")


@dataclass(eq=False)
class Cell:
    """A policy at a ratio (`asked`, None for its own). `status` is "waiting" until it is measured or given up."""

    name: str
    asked: float | None
    policy: "Policy | None"
    status: str = "waiting"
    reason: str = ""
    counted: dict[str, Any] = field(default_factory=dict)
    timed: dict[str, Any] = field(default_factory=dict)

    def give_up(self, error: BaseException) -> None:
        """Keep why it cannot be measured; lack of memory is told apart from what cannot run."""
        from vidsieve.tuner.trial_failure import reason_of

        self.status = "out of memory" if is_memory(error) else "cannot run"
        self.reason = str(error).splitlines()[0] if isinstance(error, VidsieveError) else reason_of(error)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        first = {"policy": self.name, "asked_ratio": self.asked, "status": self.status, "reason": self.reason}
        return {**first, **self.counted, **self.timed}


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in the process."""
    text = str(error)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in text or "out of memory" in text.lower()


def policies_of(settings: BenchSettings, registry: "Registry") -> "list[Policy]":
    """Load the policies that were asked for, without the empty one: the uncompressed model is measured anyway.

    Raises as `expand_policies` does.
    """
    from vidsieve.tuner.space.policy_catalog import expand_policies

    found = expand_policies(settings.policies or list(DEFAULT_POLICIES), registry)
    return [policy for policy in found if not policy.is_empty]


def cells_of(policies: "Sequence[Policy]", ratios: Sequence[float | None]) -> list[Cell]:
    """List a cell for each policy and ratio. A ratio that a policy cannot be given is a cell with that reason."""
    cells = []
    for policy in policies:
        for ratio in ratios:
            cell = Cell(policy.name, ratio, policy)
            cells.append(cell)
            if ratio is None or ratio == policy.retention_ratio:
                continue
            try:
                cell.policy = policy.with_(retention_ratio=ratio)
            except VidsieveError as error:
                cell.give_up(error)
    return cells


def timed_facts(pairs: "Pairs", rows: int, tokens: int, *, ratios: bool) -> dict[str, Any]:
    """Summarise the timed requests of a cell: intervals, ratios to the uncompressed model, and the breakdown."""
    from vidsieve.tuner.statistics import median_interval

    found = _facts(pairs.policy, rows, tokens)
    if ratios:
        names = [name for name in (*MEASURES, "prefill_ms") if all(name in run for run in pairs.policy)]
        found["ratios"] = {
            name.removesuffix("_ms"): median_interval(_ratios(pairs, name)).to_dict() for name in names if name
        }
    return found


def uncompressed_facts(pairs: "Sequence[Pairs]", rows: int, tokens: int) -> dict[str, Any]:
    """Summarise the runs of the uncompressed model, each once, though several policies were compared with it."""
    runs = {id(run): run for each in pairs for run in each.baseline}
    return _facts(list(runs.values()), rows, tokens) if runs else {}


def _ratios(pairs: "Pairs", name: str) -> list[float]:
    return [ours[name] / theirs[name] for ours, theirs in zip(pairs.policy, pairs.baseline, strict=True)]


def _facts(runs: list[dict[str, float]], rows: int, tokens: int) -> dict[str, Any]:
    from statistics import median

    from vidsieve.tuner.statistics import median_interval

    measures = {name: median_interval([run[name] for run in runs]) for name in MEASURES if name in runs[0]}
    parts = {name: median(run[name] for run in runs) for name in runs[0] if name.endswith("_ms")}
    parts = {name: value for name, value in parts.items() if name not in MEASURES}
    speeds = median_interval([1e3 * rows * tokens / run["e2e_ms"] for run in runs])
    named = sum(value for name, value in parts.items() if name != "other_ms")
    return {
        "measures": {name: interval.to_dict() for name, interval in measures.items()}
        | {"tokens_per_s": speeds.to_dict()},
        "parts_ms": parts,
        "parts_over_whole": named / measures["e2e_ms"].value,
        "requests": len(runs),
    }
