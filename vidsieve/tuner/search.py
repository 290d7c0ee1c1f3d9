"""The search itself: an Optuna study by ask and tell, presets first, every trial told whatever becomes of it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np

from vidsieve.framework.errors import TuneError
from vidsieve.tuner.bounds import Explored
from vidsieve.tuner.events import TrialEvent
from vidsieve.tuner.failure import reason_of
from vidsieve.tuner.lab import Lab
from vidsieve.tuner.trial import Finding, Judge

STUDY_NAME = "vidsieve"


@dataclass
class Search:
    """All trials of a search in order, and why it ended ("trials", "time budget" or "interrupted")."""

    findings: list[Finding] = field(default_factory=list)
    stopped: str = "trials"

    @property
    def best(self) -> Finding | None:
        """The feasible trial of highest value."""
        return next(iter(self.leaders()), None)

    def leaders(self) -> list[Finding]:
        """Feasible trials, best first, each policy once."""
        ranked = sorted((f for f in self.findings if f.feasible), key=lambda f: (-f.value, f.number))
        return list({finding.policy.hash: finding for finding in reversed(ranked)}.values())[::-1]

    def proxy_r(self) -> float | None:
        """Correlation over trials of mean p(gold) with mean 0/1; None for fewer than five or no spread."""
        scores = [f.score for f in self.leaders() if f.score is not None and f.score.scorer == "p_gold"]
        if len(scores) < 5:
            return None
        pairs = np.array([[score.mean, score.accuracy] for score in scores])
        return None if np.any(pairs.std(axis=0) == 0) else float(np.corrcoef(pairs.T)[0, 1])


def run_search(lab: Lab, explored: Explored, judge: Judge, reserve_s: float, search: Search) -> None:
    """Fill `search` trial by trial, until the trials or the time budget less `reserve_s` are used up.

    The first trial runs whatever the budget. An interruption passes through, and `search` keeps what was found.
    """
    study = open_study(lab)
    enqueue_presets(study, lab, explored)
    durations: list[float] = []
    for number in range(1, lab.request.trials + 1):
        left = lab.seconds_left(reserve_s)
        if left is not None and durations and left < mean(durations):
            search.stopped = "time budget"
            return
        start = lab.clock()
        trial = study.ask()
        try:
            finding = _one(trial, explored, judge, number, search.best)
        except BaseException:
            study.tell(trial, state=_state("FAIL"))
            raise
        _tell(study, trial, finding)
        search.findings.append(finding)
        durations.append(lab.clock() - start)
        lab.listener.trial(_event(lab, judge, finding, durations, reserve_s))


def open_study(lab: Lab) -> Any:
    """The study: TPE over the conditional space, seeded, its storage as requested. Raises TuneError if it is taken."""
    import optuna

    with _quiet():
        sampler = optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=False,
            seed=lab.request.seed,
            n_startup_trials=max(4, min(10, lab.request.trials // 3)),
        )
        name = STUDY_NAME if lab.request.storage is not None else None
        try:
            return optuna.create_study(
                storage=lab.request.storage, study_name=name, sampler=sampler, direction="maximize"
            )
        except optuna.exceptions.DuplicatedStudyError:
            raise TuneError(
                f"study: {lab.request.storage} holds a search already. Name another place for this one."
            ) from None


def enqueue_presets(study: Any, lab: Lab, explored: Explored) -> None:
    """Published policies first: each at its limit, then at its published retention ratio, if that is allowed.

    Where the uncompressed model meets the target there is no limit: at the published ratio, half-way from there to all
    tokens, then at half of it.
    """
    entries = explored.space.entries.values()
    published = [(entry, entry.policy.retention_ratio) for entry in entries]
    points = [(entry, entry.retention[1] if entry.retention else None) for entry in entries]
    halves = [(entry, max(entry.retention[0], (ratio or 1) / 2)) for entry, ratio in published if entry.retention]
    milder = [(entry, (1 + ratio) / 2) for entry, ratio in published if ratio is not None]
    for entry, ratio in [*published, *milder, *halves] if lab.already_met else [*points, *published]:
        params = entry.preset(ratio)
        if params is not None:
            study.enqueue_trial(params, skip_if_exists=True)


def _one(trial: Any, explored: Explored, judge: Judge, number: int, best: Finding | None) -> Finding:
    """Ask for a candidate and judge it; settings that do not go together are a failed trial."""
    try:
        with _quiet():
            candidate = explored.space.suggest(trial)
    except Exception as error:
        return judge.failed(number, None, reason_of(error))
    return judge.judge(number, candidate, best)


def _tell(study: Any, trial: Any, finding: Finding) -> None:
    """Give the study the constraints, then the value: a trial without constraints would count as feasible."""
    for name, amount in finding.violation.items():
        trial.set_constraint(name, amount)
    trial.set_user_attr("verdict", finding.verdict)
    if finding.reason:
        trial.set_user_attr("reason", finding.reason)
    if finding.candidate is not None:
        trial.set_user_attr("policy_hash", finding.policy.hash)
    if finding.latency is not None:
        trial.set_user_attr("latency", finding.latency.to_dict())
    if finding.score is not None:
        trial.set_user_attr("change_points", 100 * (finding.change or 0.0))
        trial.set_user_attr("scored", len(finding.score.outcomes))
    study.tell(trial, finding.value)


def _event(lab: Lab, judge: Judge, finding: Finding, durations: list[float], reserve_s: float) -> TrialEvent:
    """A finding as the listener hears it; the ETA counts the confirmation in."""
    candidate, latency, score = finding.candidate, finding.latency, finding.score
    eta = mean(durations) * (lab.request.trials - finding.number) + reserve_s
    left = lab.seconds_left()
    return TrialEvent(
        number=finding.number,
        total=lab.request.trials,
        policy=candidate.base if candidate else "",
        retention_ratio=candidate.policy.retention_ratio if candidate else None,
        settings=dict(candidate.settings) if candidate else {},
        latency=latency.ratio.scaled(lab.baseline_ms) if latency else None,
        score=score.mean if score else None,
        change_points=100 * finding.change if finding.change is not None else None,
        scored=len(score.outcomes) if score else 0,
        scorer=judge.scorer,
        verdict=finding.verdict,
        reason=finding.reason,
        eta_s=eta if left is None else max(0.0, min(eta, left)),
    )


def _state(name: str) -> Any:
    import optuna

    return optuna.trial.TrialState[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna marks `multivariate` and `group` experimental; that is our choice and not news for the user."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
