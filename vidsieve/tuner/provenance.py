"""Write the provenance of a tuned policy: what was measured, on what, and how the policy was found."""

import datetime
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import vidsieve
from vidsieve.tuner.examples import Data
from vidsieve.tuner.judge.rerank import Proxy
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measured import Accuracy, Control, Latency
from vidsieve.tuner.result import Bounds
from vidsieve.tuner.search.trial import Evaluator
from vidsieve.tuner.search.trial_loop import Search

SCHEMA = 1


def provenance(
    measurement: Measurement,
    data: Data,
    bounds: Bounds,
    search: Mapping[str, Any],
    latency: Latency | None,
    accuracy: Accuracy | None,
    controls: Sequence[Control],
    warnings: Sequence[str],
    confirmed: bool,
) -> dict[str, Any]:
    """Make the provenance section. The held-out ids come last, because they are long."""
    described = data.to_dict()
    ids = described.pop("heldout_ids")
    return {
        **_head(measurement, confirmed),
        "target": _target(measurement, bounds.target_ms) | {"already_met": bounds.already_met},
        "bounds": {
            "uncompressed_ms": bounds.baseline.to_dict(),
            "floor_ms": bounds.floor.to_dict(),
            "floor_policy": bounds.floor_policy,
        },
        "latency": latency.to_dict() if latency else None,
        "accuracy": accuracy.to_dict() if accuracy else None,
        "controls": [control.to_dict() for control in controls],
        "search": dict(search),
        "warnings": list(warnings),
        "data": described,
        "heldout_ids": ids,
    }


def confirmation(
    measurement: Measurement,
    data: Data,
    before: Mapping[str, Any],
    target_ms: float,
    latency: Latency,
    accuracy: Accuracy,
    breakdown_ms: Mapping[str, Any],
    *,
    confirmed: bool,
) -> dict[str, Any]:
    """Make the provenance of a policy measured again: the measurements are new, the search stays as it was."""
    described = data.to_dict()
    ids = described.pop("heldout_ids")
    return {
        **_head(measurement, confirmed),
        "target": _target(measurement, target_ms),
        "latency": latency.to_dict(),
        "accuracy": accuracy.to_dict(),
        "controls": [],
        "search": before.get("search") or {},
        "warnings": list(measurement.warnings),
        "data": described,
        "breakdown_ms": rounded(breakdown_ms),
        "found_on": before.get("found_on") or before.get("measured_on") or {},
        "heldout_ids": ids,
    }


def _head(measurement: Measurement, confirmed: bool) -> dict[str, Any]:
    """State by what version, when and on what it was measured."""
    return {
        "schema": SCHEMA,
        "made_by": f"vidsieve {vidsieve.__version__}",
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "confirmed": confirmed,
        "measured_on": dict(measurement.bench.describe()),
    }


def _target(measurement: Measurement, target_ms: float) -> dict[str, Any]:
    """State the target in milliseconds, and as a speed-up where it was one."""
    target: dict[str, Any] = {"metric": f"{measurement.request.metric}_ms", "value_ms": _digits(target_ms)}
    return target | ({"speedup": measurement.request.speedup} if measurement.request.speedup is not None else {})


def rounded(breakdown: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Round milliseconds to six significant digits."""
    return {side: {part: _digits(value) for part, value in parts.items()} for side, parts in breakdown.items()}


def search_summary(
    measurement: Measurement, bounds: Bounds, evaluator: Evaluator, search: Search, proxy: Proxy | None = None
) -> dict[str, Any]:
    """Summarise the search; the score of the winner on the search examples is left out on purpose."""
    import optuna

    verdicts = [trial_result.verdict for trial_result in search.trial_results]
    return {
        "sampler": f"optuna {optuna.__version__} TPE multivariate group",
        "seed": measurement.request.seed,
        "scorer": evaluator.scorer,
        "proxy": proxy.to_dict() if proxy is not None and evaluator.scorer == "p_gold" else None,
        "latency_model_error": _digits(bounds.model_error) if bounds.model_error is not None else None,
        "trials": len(verdicts),
        "trials_asked": measurement.request.trials,
        "trials_resumed": search.resumed,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
        "stopped_by": search.stopped,
        "examples_scored": len(evaluator.baseline.outcomes) + search.examples_scored,
        "seconds": round(measurement.elapsed_s(), 1),
        "policies": list(bounds.policies),
        "set_aside": dict(bounds.set_aside),
        "failures": {f.number: f.reason for f in search.trial_results if f.verdict == "failed"},
    }


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


LEAST_TRIALS = 10
TOP_TRIALS = 5
"""PED-ANOVA compares the best trials with all; its authors ask for at least so many at the top."""


def importance_of(study: Any) -> dict[str, float]:
    """Estimate the share of the score that each searched setting explains, largest first; shares add up to 1.

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
    """Return the paired change in score, NaN where the trial was not scored: its value is then no score."""
    return float(trial.user_attrs.get("change_points", math.nan))


def _between_policies(trials: list[Any]) -> float:
    """Compute the share of variance between policies, adjusted for their number."""
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
    """Ask Optuna for the importance of everything searched but the policy itself."""
    import optuna

    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, TOP_TRIALS / scored)))
    with warnings.catch_warnings():
        # it warns that lower targets count as better, which is why the change is negated
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -_change(trial), normalize=False
        )
    return {name: float(value) for name, value in found.items() if name != "policy" and math.isfinite(value)}
