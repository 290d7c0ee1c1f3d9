"""Which of the searched settings mattered: a hint read off the trials, no measurement."""

import logging
import math
import warnings
from collections import defaultdict
from typing import Any

import numpy as np

LEAST_TRIALS = 10
TOP_TRIALS = 5
"""PED-ANOVA compares the best trials with all; its authors ask for at least so many at the top."""


def importance_of(study: Any) -> dict[str, float]:
    """How much of the score each searched setting explains, largest first, as fractions that add up to 1.

    `policy` is the share of the variance of the change in score that lies between policies (adjusted for their
    number). The rest is shared out among the settings, named `policyname/stage.setting`, by Optuna's conditional
    PED-ANOVA. Empty with fewer than ten scored trials, no spread, or a study that cannot be read; never raises.
    """
    try:
        return _importance(study)
    except Exception as error:
        logging.getLogger(__name__).debug("no importance of settings: %r", error)
        return {}


def _importance(study: Any) -> dict[str, float]:
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    scored = [trial for trial in complete if math.isfinite(_change(trial))]
    if len(scored) < LEAST_TRIALS or np.ptp([_change(trial) for trial in scored]) == 0:
        return {}
    policy = _between_policies(scored)
    settings = _settings(study, len(scored))
    total = sum(settings.values())
    shares = {"policy": policy if total > 0 else 1.0}
    if total > 0:
        shares |= {name: (1 - policy) * value / total for name, value in settings.items()}
    kept = {name: share for name, share in shares.items() if share > 0}
    return dict(sorted(kept.items(), key=lambda item: (-item[1], item[0])))


def _change(trial: Any) -> float:
    """The paired change in score, NaN where the trial was not scored: its value is then a mark, no score."""
    return float(trial.user_attrs.get("change_points", math.nan))


def _between_policies(trials: list[Any]) -> float:
    """Share of the variance between policies, adjusted so that many policies explain nothing by their number."""
    groups: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        groups[str(trial.params.get("policy", ""))].append(_change(trial))
    free = len(trials) - len(groups)
    if len(groups) < 2 or free < 1:
        return 0.0
    within = sum(float(np.var(values)) * len(values) for values in groups.values()) / free
    total = float(np.var([_change(trial) for trial in trials], ddof=1))
    return min(1.0, max(0.0, 1 - within / total))


def _settings(study: Any, scored: int) -> dict[str, float]:
    """Optuna's importance of everything searched but the policy itself."""
    import optuna

    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, TOP_TRIALS / scored)))
    with warnings.catch_warnings():
        # it warns that lower targets count as better, which is why the change is negated
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -_change(trial), normalize=False
        )
    return {name: float(value) for name, value in found.items() if name != "policy" and math.isfinite(value)}
