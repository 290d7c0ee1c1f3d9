"""What the tuner is compared with: random search and plain constrained TPE, on the same bench and the same examples."""

from collections.abc import Sequence
from typing import Any

import optuna
from replay_bench import ReplayBench, ReplayTask

from vidsieve.framework.errors import VidsieveError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.latency import PairedTimer
from vidsieve.tuner.measure.measurement import Timings
from vidsieve.tuner.space.knobs import knobs_of

LOWEST, HIGHEST = 0.1, 1.0
"""Retention ratios that are searched: from the lowest of the grid to all tokens."""
SHRINK, MOST_STEPS = 0.97, 15


def plain_search(
    bench: ReplayBench,
    task: ReplayTask,
    policies: Sequence[Policy],
    *,
    sampler: str,
    target_ratio: float,
    trials: int,
    examples: int,
    seed: int,
    timings: Timings,
) -> Policy | None:
    """0/1 accuracy on all search examples, retention searched beside the settings, latency as a constraint.

    `sampler` is "random" or "tpe" (Optuna's own default). The best trial that seemed to meet the target has its
    latency confirmed as the tuner does, retention shrunk 3 % a step until the interval fits. None: nothing fitted.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}[sampler]
    study = optuna.create_study(direction="maximize", sampler=made(seed=seed))
    timer = PairedTimer(bench, "ttft", lambda: bench.now_s)
    asked = task.examples("search", examples, seed=seed)
    tried: list[tuple[float, Policy]] = []
    for _ in range(trials):
        trial = study.ask()
        try:
            policy = _suggest(trial, policies)
            ratio = timer.measure(policy, timings.trial).ratio.value
        except VidsieveError:
            trial.set_constraint("latency", 1.0)
            study.tell(trial, 0.0)
            continue
        value = sum(outcome.correct for outcome in bench.score(policy, asked)) / len(asked)
        trial.set_constraint("latency", ratio / target_ratio - 1)
        study.tell(trial, value)
        if ratio <= target_ratio:
            tried.append((value, policy))
    if not tried:
        return None
    return _confirmed(timer, timings, max(tried, key=lambda entry: entry[0])[1], target_ratio)


def _suggest(trial: Any, policies: Sequence[Policy]) -> Policy:
    """A policy with settings and a retention ratio. Raises what `with_` raises, and for one out of reach."""
    chosen = trial.suggest_categorical("policy", [policy.name for policy in policies])
    policy = next(policy for policy in policies if policy.name == chosen)
    settings = {knob.name: knob.suggest(trial, policy.name) for knob in knobs_of(policy)}
    ratio = trial.suggest_float(f"{chosen}/retention_ratio", LOWEST, HIGHEST)
    return policy.with_(retention_ratio=ratio, settings=settings)


def _confirmed(timer: PairedTimer, timings: Timings, policy: Policy, target_ratio: float) -> Policy:
    for _ in range(MOST_STEPS):
        if timer.measure(policy, timings.final).ratio.high <= target_ratio:
            break
        assert policy.retention_ratio is not None
        policy = policy.with_(retention_ratio=policy.retention_ratio * SHRINK)
    return policy
