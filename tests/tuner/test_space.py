"""The search space is read off the stages' declarations, and presets outside it are never run."""

from typing import Any

import optuna
import pytest
from tuner.fake_bench import STAGES, FakeScore, FakeTop, fake_policy

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry, default
from vidsieve.tuner.space.knobs import knobs_of, retention_window
from vidsieve.tuner.space.policy_catalog import split_published
from vidsieve.tuner.space.search_space import PolicySpace, Space


def _knobs(search: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return {knob.name: knob.to_dict() for knob in knobs_of(fake_policy("a", search=search))}


def test_every_tunable_setting_is_searched_in_its_declared_range_and_no_other() -> None:
    assert _knobs() == {
        "fake.score.power": {"low": 0.5, "high": 2.0},
        "fake.score.window": {"low": 1, "high": 8},
        "fake.score.mode": {"choices": ["near", "far"]},
        "fake.score.centred": {"choices": [False, True]},
    }


def test_a_setting_that_is_solved_or_left_open_is_not_searched() -> None:
    published = load_policy("dycoke")
    names = {knob.name for knob in knobs_of(published)}
    assert "dycoke.temporal-merge.drop_ratio" not in names


def test_the_search_section_narrows_and_fixes() -> None:
    search = {
        "fake.score.power": {"low": 1.0, "high": 1.5},
        "fake.score.window": [2, 4],
        "fake.score.mode": "fixed",
        "retention_ratio": {"low": 0.2, "high": 0.5},
    }
    knobs = _knobs(search)
    assert knobs["fake.score.power"] == {"low": 1.0, "high": 1.5}
    assert knobs["fake.score.window"] == {"choices": [2, 4]}
    assert "fake.score.mode" not in knobs
    assert retention_window(fake_policy("a", search=search)) == (0.2, 0.5)


@pytest.mark.parametrize(
    "search",
    [
        {"fake.score.powr": "fixed"},
        {"fake.score.power": {"low": 0.1}},
        {"fake.score.power": {"low": 2.0, "high": 1.0}},
        {"fake.score.power": {"min": 1}},
        {"fake.score.power": "on"},
        {"fake.score.power": [True]},
        {"fake.score.window": [1.5]},
        {"fake.score.power": []},
        {"fake.score.centred": {"low": 0}},
    ],
)
def test_a_faulty_search_section_is_refused_with_its_place(search: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"policy 'a', search: fake\.score"):
        knobs_of(fake_policy("a", search=search))


@pytest.mark.parametrize("window", [{"low": -1}, {"high": 2}, "fixed", [0.1, 0.2], 0.3])
def test_a_faulty_retention_window_is_refused(window: Any) -> None:
    with pytest.raises(UsageError, match="retention_ratio"):
        retention_window(fake_policy("a", search={"retention_ratio": window}))


def test_an_unknown_setting_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'fake\.score\.power'"):
        knobs_of(fake_policy("a", search={"fake.score.powr": "fixed"}))


def test_suggested_policies_stay_in_range_and_depend_on_the_policy() -> None:
    space = Space({name: PolicySpace.of(fake_policy(name), (0.1, 0.4)) for name in ("a", "b")})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        candidate = space.suggest(trial)
        assert all(name == "policy" or name.startswith(f"{candidate.base}/") for name in trial.params)
        assert candidate.policy.retention_ratio is not None
        assert 0.1 <= candidate.policy.retention_ratio <= 0.4
        for name, value in candidate.settings.items():
            assert getattr(candidate.policy.stages[0].stage, name.rpartition(".")[2]) == value


def test_a_preset_is_the_published_policy_itself() -> None:
    entry = PolicySpace.of(fake_policy("a"), (0.1, 0.4))
    study = optuna.create_study()
    params = entry.preset(0.3)
    assert params is not None
    study.enqueue_trial(params)
    candidate = Space({"a": entry}).suggest(study.ask())
    assert candidate.policy.hash == fake_policy("a", 0.3).hash


def test_a_preset_outside_the_space_is_not_enqueued() -> None:
    entry = PolicySpace.of(fake_policy("a"), (0.1, 0.4))
    assert entry.preset(0.5) is None
    assert entry.preset(None) is None
    narrowed = PolicySpace.of(fake_policy("a", search={"fake.score.window": {"low": 5}}), (0.1, 0.4))
    assert narrowed.preset(0.3) is None


def test_a_policy_whose_settings_decide_the_count_has_no_retention_to_search() -> None:
    entry = PolicySpace.of(load_policy("dycoke-released"), None)
    params = entry.preset()
    assert params is not None
    assert not any(name.endswith("/retention_ratio") for name in params)
    assert "dycoke-released/dycoke.temporal-merge.drop_ratio" in params


def test_all_published_policies_can_be_searched_as_they_are() -> None:
    for name in default().policies:
        policy = load_policy(name)
        ratio = policy.retention_ratio
        preset = PolicySpace.of(policy, (0.01, 1.0) if ratio is not None else None).preset(ratio)
        assert preset is not None, name


def test_controls_and_released_forms_are_not_searched_by_default() -> None:
    search, more, controls = split_published(load_policy(name) for name in default().policies)
    assert {"vidcom2", "dycoke"} <= {policy.name for policy in search}
    assert {policy.name for policy in controls} == {"random", "uniform-frames"}
    assert not any(policy.name.endswith("-released") or policy.is_empty for policy in (*search, *more))


def test_two_stages_of_a_kind_are_told_apart_by_label() -> None:
    twice = Policy(
        name="twice",
        retention_ratio=0.5,
        stages=(
            BoundStage("first", "fake.score", FakeScore()),
            BoundStage("cut", "fake.top", FakeTop()),
            BoundStage("second", "fake.score", FakeScore()),
            BoundStage("fake.top", "fake.top", FakeTop()),
        ),
    )
    names = {knob.name for knob in knobs_of(twice)}
    assert {"first.power", "second.power"} <= names


def test_the_fake_stages_are_ordinary_stages() -> None:
    registry = Registry(installed=False)
    for name, stage in STAGES.items():
        registry.register(name, stage)
    assert set(registry.stages) == set(STAGES)
