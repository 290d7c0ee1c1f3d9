"""Measuring one cell, in a process of its own that keeps the model and the clips it was last asked about."""

import functools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import patch

from policy_cells.wanted import RULES, TIMED, TIMED_RUNG, Cell
from vidsieve import load_policy
from vidsieve.framework import registry
from vidsieve.framework.errors import PlanError, PolicyError, RetentionError, StageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report
from vidsieve.harness.runner import Runner
from vidsieve.harness.session import Session, open_session
from vidsieve.harness.setup import Setup
from vidsieve.tuner.measure.latency import PairedTimer

Found = dict[str, Any]


def ignore_interrupts() -> None:
    """Ctrl-C is the parent's to handle: what a worker has begun, it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def measure(cell: Cell, questions: int, seed: int) -> tuple[Found, dict[str, str]]:
    """The cell's numbers, or why there are none; and what it was measured on.

    Raises:
        RuntimeError: anything else that went wrong, in words: not every exception crosses to another process.
    """
    try:
        return _measure(cell, questions, seed)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def _measure(cell: Cell, questions: int, seed: int) -> tuple[Found, dict[str, str]]:
    ward = _ward(cell.model, TIMED_RUNG if cell.what in TIMED else cell.what, questions, seed)
    began = time.perf_counter()
    policy = load_policy(cell.policy, retention_ratio=cell.ratio)
    try:
        found = ward.time(policy, cell.what) if cell.what in TIMED else ward.score(policy)
    except RetentionError:
        low, high = policy.attainable(ward.session.bench.shape)
        reach = f"{100 * low:.3g} %" if high - low < 1e-9 else f"{100 * low:.3g} to {100 * high:.3g} %"
        found = {"missing": f"n/a, reaches {reach}"}
    except (PlanError, StageError):
        raise
    except PolicyError as error:
        found = {"missing": "n/a", "why": str(error)}
    return found | {"seconds": round(time.perf_counter() - began, 2)}, dict(ward.session.bench.describe())


@functools.lru_cache(maxsize=1)
def _ward(model: str, rung: str, questions: int, seed: int) -> "Ward":
    return Ward(open_session(Setup(model=model, rung=rung), registry.default(), seed=seed), questions, seed)


class Ward:
    """A model with one rung's questions. The bench's feature store encodes each clip once for all policies."""

    def __init__(self, session: Session, questions: int, seed: int) -> None:
        self.session = session
        self.examples = list(session.task.examples("heldout", questions, seed=seed))

    def score(self, policy: Policy) -> Found:
        """Right and wrong, a string a clip, and the attained retention."""
        clips: dict[str, str] = {}
        with self._reports() as reports:
            for outcome in self.session.bench.score(policy, self.examples):
                clips[outcome.group] = clips.get(outcome.group, "") + str(int(outcome.correct))
        whole = Report.combine(reports)
        return {
            "clips": list(clips.values()),
            "in_prompt": round(whole.prompt_ratio, 6),
            "over_layers": round(whole.attained_ratio, 6),
        }

    def time(self, policy: Policy, metric: Literal["ttft", "e2e"]) -> Found:
        """The time to the first token, or of the whole request, beside the uncompressed model's.

        The vision tower and the policy are part of both.
        """
        latency = PairedTimer(self.session.bench, metric).measure(policy, RULES).to_dict()
        kept = {name: latency[name] for name in ("policy_ms", "baseline_ms", "stopped")}
        return {f"{metric}_ratio": latency["ratio"], **kept, "load": round(os.getloadavg()[0], 2)}

    @contextmanager
    def _reports(self) -> Iterator[list[Report]]:
        """Every report of the runs inside, of whichever runner."""
        original, found = Runner.under, list[Report]()

        @contextmanager
        def under(runner: Runner, policy: Any) -> Iterator[list[Report]]:
            with original(runner, policy) as reports:
                yield reports
            found.extend(reports)

        with patch.object(Runner, "under", under):
            yield found
