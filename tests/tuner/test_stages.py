"""Stages on, off or exchanged as part of the space: conditional, checked when it is built, named honestly."""

import json
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from tuner.fake_bench import STAGES, FakeBench, FakeScore, FakeTop

from vidsieve import Budget, Scores, Stage, VideoTokens, hookimpl, tunable
from vidsieve.framework.composition import BoundStage
from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.file import load_policy, read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry, default
from vidsieve.tuner.measure.bounds import explore
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener
from vidsieve.tuner.space.knobs import has_free_retention
from vidsieve.tuner.space.search_space import PolicySpace, Space
from vidsieve.tuner.space.stage_variants import MOST_COMBINATIONS, OFF

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Even(Stage):
    """A frame budget that may be left out."""

    optional = True
    sharpness: float = tunable(0.5, low=0.0, high=1.0)

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        return Budget(share=tokens.keep.any(dim=1).float())


class Steep(Even):
    """Another frame budget."""

    slope: float = tunable(2.0, low=1.0, high=4.0)


class Seeing(Stage):
    """A scorer that needs what the fake bench does not offer."""

    def needs(self) -> frozenset[str]:
        return frozenset({"vision_attention"})

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().norm(dim=-1))


class Best(FakeTop):
    """Reads a budget if there is one."""

    reads_if_made = ("budget",)


KINDS: dict[str, type[Stage]] = STAGES | {"even": Even, "steep": Steep, "seeing": Seeing, "best": Best}
REGISTRY = Registry(installed=False)
for _name, _stage in KINDS.items():
    REGISTRY.register(_name, _stage)

TEXT = """
format: 1
name: sample
retention_ratio: 0.3
stages:
  - {use: even}
  - {use: fake.score}
  - {use: best}
search:
"""


def _policy(search: str = "") -> Policy:
    return read_policy(TEXT + (search or "  {}\n"), "sample.yaml", REGISTRY)


def _asked(entry: PolicySpace, count: int = 60) -> list[tuple[Any, Mapping[str, Any]]]:
    """(candidate, Optuna's parameters) of real asks by the sampler the tuner uses."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, seed=0, n_startup_trials=40)
    study = optuna.create_study(sampler=sampler)
    found = []
    for number in range(count):
        trial = study.ask()
        found.append((Space({"sample": entry}).suggest(trial), trial.params))
        study.tell(trial, number % 7)
    return found


def test_an_optional_stage_is_on_or_off_and_its_settings_are_asked_only_when_on() -> None:
    seen = set()
    for candidate, params in _asked(PolicySpace.of(_policy(), (0.3, 0.3), solved=True)):
        off = candidate.stages == {"even": OFF}
        seen.add(off)
        assert params["sample/stages/even"] == (OFF if off else "even")
        assert ("sample/even.sharpness" in params) is not off
        assert [bound.use for bound in candidate.policy.stages] == ["even"] * (not off) + ["fake.score", "best"]
        assert candidate.policy.name == ("sample-without-even" if off else "sample")
        assert candidate.policy.retention_ratio == 0.3
    assert seen == {True, False}


def test_a_list_chooses_which_stage_stands_there_with_the_settings_it_declares() -> None:
    entry = PolicySpace.of(_policy("  stages: {even: [even, steep]}\n  steep.slope: {low: 1.5, high: 2.5}\n"), None)
    seen = set()
    for candidate, params in _asked(entry):
        use = candidate.policy.stages[0].use
        seen.add((candidate.policy.name, use))
        assert {name for name in params if "even." in name or "steep." in name} == {
            f"sample/{name}" for name in (["even.sharpness"] if use == "even" else ["steep.sharpness", "steep.slope"])
        }
        if use == "steep":
            assert candidate.policy.stages[0].stage.model_dump()["slope"] == params["sample/steep.slope"]
            assert 1.5 <= params["sample/steep.slope"] <= 2.5
    assert seen == {("sample", "even"), ("sample-with-steep", "steep")}


def test_all_combinations_that_make_a_policy_occur_and_no_other() -> None:
    text = TEXT.replace("{use: fake.score}", "{use: fake.score, as: first}").replace(
        "  - {use: best}", "  - {use: fake.top}\n  - {use: fake.score, as: second}\n  - {use: best}"
    )
    # leaving out a cut leaves the scores before it unread, so the cut and its scorer go together or stay
    text += "  stages: {even: fixed, first: optional, fake.top: optional, second: optional}\n"
    text = text.replace("  - {use: even}\n", "").replace("even: fixed, ", "")
    policy = read_policy(text, "sample.yaml", REGISTRY)
    valid = set()
    for first in (True, False):
        for cut in (True, False):
            for second in (True, False):
                kept = {"first": first, "fake.top": cut, "second": second, "best": True}
                # the cut may only go with scores alive before it; `best` only with scores after the cut
                if (not cut or first) and (second or (first and not cut)) and not (first and not cut and second):
                    valid.add(tuple(label for label, on in kept.items() if on))
    entry = PolicySpace.of(policy, None)
    assert {tuple(b.label for b in v.policy.stages) for v in entry.variants.values()} == valid
    seen = {tuple(b.label for b in candidate.policy.stages) for candidate, _ in _asked(entry, 150)}
    assert seen == valid


def test_fixed_keeps_a_stage_and_optional_opens_one() -> None:
    assert PolicySpace.of(_policy("  stages: {even: fixed}\n"), None).places == ()
    with pytest.raises(UsageError, match=r"fake\.score: it cannot be left out: .*reads scores, but no earlier"):
        PolicySpace.of(_policy("  stages: {fake.score: optional}\n"), None)


def test_a_stage_of_another_hook_that_makes_no_policy_is_refused_with_the_reason() -> None:
    with pytest.raises(
        UsageError, match=r"search: stages: fake\.score: 'steep' cannot stand there: .*makes budget that no later"
    ):
        PolicySpace.of(_policy("  stages: {fake.score: [fake.score, steep]}\n"), None)


def test_what_the_model_does_not_offer_is_not_in_the_space() -> None:
    entry = PolicySpace.of(_policy("  stages: {even: fixed, fake.score: [fake.score, seeing]}\n"), None)
    assert len(entry.variants) == 2
    bench = FakeBench(lambda policy: 0.9)
    entry = PolicySpace.of(entry.policy, None, bench=bench)
    assert [variant.policy.name for variant in entry.variants.values()] == ["sample"]
    assert _asked(entry, 3)[0][0].stages == {"fake.score": "fake.score"}
    measurement = Measurement.open(bench, TuneRequest(latency_ms=200.0), Listener(), None, lambda: 0.0)
    [told] = explore(measurement, [entry.policy]).bounds.warnings
    assert told == "sample-with-seeing is not searched: it needs vision_attention"


def test_stages_that_share_a_label_do_not_share_parameters() -> None:
    text = TEXT.replace("{use: even}", "{use: even, as: budget}") + "  stages: {budget: [even, steep]}\n"
    entry = PolicySpace.of(read_policy(text, "sample.yaml", REGISTRY), None)
    names = {name for _, params in _asked(entry) for name in params}
    assert {"sample/budget.sharpness", "sample/steep/budget.sharpness", "sample/steep/budget.slope"} <= names


@pytest.mark.parametrize(
    "search",
    [
        {"stages": {"evne": "fixed"}},
        {"stages": {"even": "off"}},
        {"stages": {"even": []}},
        {"stages": {"even": ["even", "even"]}},
        {"stages": {"even": ["steep"]}},
        {"stages": {"even": True}},
        {"stages": "optional"},
        {"stages": {"even": [["even"]]}},
    ],
)
def test_a_faulty_choice_of_stages_from_python_is_refused_with_its_place(search: dict[str, Any]) -> None:
    stages = (
        BoundStage("even", "even", Even()),
        BoundStage("fake.score", "fake.score", FakeScore()),
        BoundStage("best", "best", Best()),
    )
    policy = Policy(name="sample", retention_ratio=0.3, stages=stages, search=search)
    with pytest.raises(UsageError, match=r"policy 'sample', search: stages"):
        PolicySpace.of(policy, None)


def test_too_many_combinations_are_refused_before_they_are_tried() -> None:
    stages = [BoundStage(f"b{i}", "even", Even()) for i in range(9)]
    tail = [BoundStage("fake.score", "fake.score", FakeScore()), BoundStage("best", "best", Best())]
    budgets = [stage for bound in stages for stage in (bound, *_reader(bound.label))]
    policy = Policy(name="sample", retention_ratio=0.3, stages=(*budgets, *tail))
    with pytest.raises(UsageError, match=rf"512 combinations, at most {MOST_COMBINATIONS}.*b0: fixed"):
        PolicySpace.of(policy, None)


def _reader(label: str) -> tuple[BoundStage, ...]:
    """A scorer and a cut, so that one more budget is read."""
    return (BoundStage(f"{label}s", "fake.score", FakeScore()), BoundStage(f"{label}t", "best", Best()))


def test_the_preset_is_the_published_policy_with_all_its_stages() -> None:
    for name in default().policies:
        policy = load_policy(name)
        if policy.is_empty:
            continue
        ratio = policy.retention_ratio
        entry = PolicySpace.of(policy, (0.01, 1.0) if has_free_retention(policy) else None)
        params = entry.preset(ratio)
        assert params is not None, name
        study = optuna.create_study()
        study.enqueue_trial(params)
        trial = study.ask()
        assert Space({name: entry}).suggest(trial).policy.hash == policy.hash
        assert dict(trial.params) == params


def test_a_policy_that_only_skips_frames_has_its_retention_decided_by_the_ratio_too() -> None:
    assert has_free_retention(load_policy("pixel-change"))
    assert not has_free_retention(load_policy("pixel-change", settings={"pixel-change.keep_ratio": 0.5}))


def test_without_the_published_stage_among_the_choices_there_is_no_preset() -> None:
    assert PolicySpace.of(_policy("  stages: {even: [steep]}\n"), None).preset() is None


def test_built_in_stages_that_may_go_are_declared() -> None:
    assert {name for name, stage in default().stages.items() if stage.optional} >= {
        "vidcom2.frame-budget", "dycoke.kv", "uniform-budget"
    }  # fmt: skip
    names = {v.policy.name for v in PolicySpace.of(load_policy("vidcom2"), None).variants.values()}
    assert names == {"vidcom2", "vidcom2-without-frame-budget"}


def test_the_space_tells_its_stages_in_plain_stable_data() -> None:
    told = Space({"sample": PolicySpace.of(_policy("  stages: {even: [even, steep]}\n"), (0.3, 0.3), solved=True)})
    again = Space({"sample": PolicySpace.of(_policy("  stages: {even: [even, steep]}\n"), (0.2, 0.2), solved=True)})
    document = json.loads(json.dumps(told.to_dict()))
    assert document == told.to_dict() == again.to_dict()
    assert document["sample"]["stages"] == {"even": ["even", "steep"]}
    assert document["sample"]["retention_ratio"] == "solved"
    assert {"even.sharpness", "steep.slope", "steep.sharpness"} <= set(document["sample"]["settings"])


def test_two_candidates_are_one_when_all_that_was_chosen_is_the_same() -> None:
    entry = PolicySpace.of(_policy(), (0.3, 0.3), solved=True)
    on = optuna.trial.FixedTrial(entry.preset() or {})
    first, second = entry.suggest(on, lambda base, policy: 0.3), entry.suggest(on, lambda base, policy: 0.2)
    assert first.key == second.key
    assert first.policy.hash != second.policy.hash
    searched = PolicySpace.of(_policy(), (0.1, 0.3))
    keys = {searched.suggest(optuna.trial.FixedTrial(searched.preset(r) or {})).key for r in (0.1, 0.2)}
    assert len(keys) == 2


def test_the_size_counts_candidates_and_is_none_for_endlessly_many() -> None:
    fixed = "".join(f"  {name}: fixed\n" for name in ("fake.score.power", "even.sharpness"))
    entry = PolicySpace.of(_policy(fixed), (0.3, 0.3), solved=True)
    # with the budget or without it; 8 windows, 2 modes, centred or not
    assert Space({"sample": entry}).size() == 2 * 8 * 2 * 2
    assert PolicySpace.of(_policy(fixed), (0.1, 0.3)).size() is None
    assert PolicySpace.of(_policy(), (0.3, 0.3), solved=True).size() is None
    alone = Policy(name="alone", retention_ratio=0.3, stages=(BoundStage("cut", "cut", _Plain()),))
    assert PolicySpace.of(alone, (0.3, 0.3), solved=True).size() == 1


class _Plain(FakeTop):
    reads = ()
