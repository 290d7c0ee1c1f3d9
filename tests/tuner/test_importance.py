import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from tuner.fake_bench import FakeBench
from tuner.searching import quality, search

from vidsieve.tuner.provenance import importance_of


def study_of(trials: int, change: Callable[[str, float, float], float | None], policies: str = "ab") -> Any:
    """A study with conditional settings x and y of each policy, at random points."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    optuna.logging.set_verbosity(verbosity)
    draw = random.Random(0)
    for _ in range(trials):
        policy, x, y = draw.choice(policies), draw.random(), draw.random()
        points = change(policy, x, y)
        unit = FloatDistribution(0, 1)
        study.add_trial(
            optuna.trial.create_trial(
                params={"policy": policy, f"{policy}/s.x": x, f"{policy}/s.y": y},
                distributions={
                    "policy": CategoricalDistribution(tuple(policies)),
                    f"{policy}/s.x": unit,
                    f"{policy}/s.y": unit,
                },
                value=0.5,
                user_attrs={} if points is None else {"change_points": points},
            )
        )
    return study


def test_the_setting_that_decides_comes_first() -> None:
    shares = importance_of(study_of(60, lambda policy, x, y: -10 * abs(x - 0.8)))
    assert sum(shares.values()) == pytest.approx(1.0)
    by_setting = sum(share for name, share in shares.items() if name.endswith(".x"))
    assert by_setting > 0.7
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_the_policy_that_decides_comes_first() -> None:
    shares = importance_of(study_of(40, lambda policy, x, y: -20.0 * (policy == "b") - 0.5 * x))
    assert next(iter(shares)) == "policy"
    assert shares["policy"] > 0.9


def test_many_policies_explain_nothing_by_their_number() -> None:
    draw = random.Random(1)
    shares = importance_of(study_of(40, lambda policy, x, y: draw.gauss(0, 1), policies="abcdefgh"))
    assert shares.get("policy", 0.0) < 0.3


def test_trials_that_were_not_scored_do_not_count() -> None:
    def change(policy: str, x: float, y: float) -> float | None:
        return None if y > 0.5 else -10 * abs(x - 0.8)

    shares = importance_of(study_of(60, change))
    assert sum(share for name, share in shares.items() if name.endswith(".x")) > 0.7
    assert importance_of(study_of(15, change)) == {}


def test_too_few_no_spread_and_no_study_give_nothing() -> None:
    assert importance_of(study_of(9, lambda policy, x, y: x)) == {}
    assert importance_of(study_of(20, lambda policy, x, y: -1.0)) == {}
    assert importance_of(None) == {}


def test_a_search_leaves_what_is_needed_in_its_study() -> None:
    storage = optuna.storages.InMemoryStorage()
    search(FakeBench(quality), storage=storage, trials=30)
    shares = importance_of(optuna.load_study(study_name="vidsieve", storage=storage))
    assert {"policy", "good/fake.score.power"} & set(list(shares)[:2])
    assert sum(shares.values()) == pytest.approx(1.0)
