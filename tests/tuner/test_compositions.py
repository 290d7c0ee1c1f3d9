"""A search over compositions finds a planted best one, judges it against the published, and survives what may come."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tuner.composing import BEST, STAGES, Planted, compose, grammar, quality, uses
from tuner.fake_bench import FakeBench, fake_policy
from tuner.searching import Recorder

from vidsieve import Scores, Stage, VideoTokens, hookimpl
from vidsieve.framework.errors import TuneError, UsageError
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.registry import Registry
from vidsieve.tuner.measured import CompositionVerdict
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.statistics import Interval
from vidsieve.tuner.study.store import StudyMismatchError

FEW: dict[str, type[Stage]] = {name: STAGES[name] for name in ("fake.score", "fake.top", *sorted(BEST))}
"""Few compositions: a search in a second."""


def _few(**options: Any) -> Any:
    return grammar(FEW, **options)


def _short(bench: FakeBench, listener: Any = None, **options: Any) -> TuneResult:
    return compose(bench, listener, **({"compositions": _few(), "trials": 14} | options))


def test_a_planted_best_composition_is_found_and_beats_the_best_published_policy() -> None:
    # thirty trials do not try all compositions with all settings: found in most searches, not in one lucky noise
    benches = [FakeBench(quality, noise=0.02, seed=seed) for seed in range(3)]
    results = [(bench, compose(bench, trials=30)) for bench in benches]
    found = [(bench, result) for bench, result in results if uses(result.policy) == BEST]
    assert len(found) >= 2
    for bench, result in found:
        assert bench.true_ms(result.policy) <= 200
        verdict = result.composition
        assert verdict is not None
        assert verdict.beat
        assert (verdict.composition, verdict.published) == (result.policy.name, "good")
        assert verdict.difference is not None
        assert 0 < verdict.difference.low < 0.06 + 1e-9 < verdict.difference.high + 0.02
        # equal latency: both within the noise of the timer
        assert verdict.composition_latency_ratio == pytest.approx(verdict.published_latency_ratio, rel=0.05)
        [told] = [line for line in result.sentences() if "best published policy" in line]
        assert told == verdict.sentence
        assert result.policy.provenance["composition"]["beat"] is True


def test_the_policy_found_is_a_file_like_any_other() -> None:
    result = _short(FakeBench(quality))
    registry = Registry(installed=False)
    for name, stage in STAGES.items():
        registry.register(name, stage)
    again = read_policy(result.yaml, "policy.yaml", registry)
    assert again.hash == result.policy.hash
    assert again.sources == ("arXiv:2601.00001", "arXiv:2601.00002")
    assert again.summary.startswith("Composed: share tokens over frames by test.share; score tokens by planted.score;")


def test_that_no_composition_won_is_said_with_the_difference() -> None:
    def worse(policy: Policy) -> float:
        return quality(policy) if policy.name in ("good", "bad") else quality(policy) - 0.15

    result = _short(FakeBench(worse))
    assert result.policy.name == "good"
    verdict = result.composition
    assert verdict is not None
    assert not verdict.beat
    assert verdict.difference is not None
    assert verdict.difference.high < 0
    assert verdict.sentence.startswith("no composition beat the best published policy, good; the best, ")
    assert verdict.sentence in result.sentences()


def test_the_same_seed_finds_the_same_policy() -> None:
    first, second = (_short(FakeBench(quality, noise=0.02, seed=5), seed=3) for _ in range(2))
    assert [trial.policy for trial in first.trials] == [trial.policy for trial in second.trials]
    assert first.policy.hash == second.policy.hash


def test_no_composition_is_proposed_twice_and_settings_of_good_ones_are_searched() -> None:
    listener = Recorder()
    _short(FakeBench(quality), listener, trials=20)
    composed = [trial for trial in listener.trials if trial.composed]
    declared = [trial.policy for trial in composed if trial.number % 3 and not trial.settings]
    assert len(set(declared[: _few().count()])) == _few().count()
    tuned = [trial for trial in composed if "test.share.sharpness" in trial.settings]
    assert len({trial.settings["test.share.sharpness"] for trial in tuned}) > 1
    assert {trial.policy for trial in tuned} == {"test-share-and-planted-score-and-test-top"}


def test_a_grammar_in_which_nothing_fits_leaves_the_published_policies_and_says_so() -> None:
    listener = Recorder()
    result = _short(FakeBench(quality), listener, compositions=grammar({"test.cuts": STAGES["test.cuts"]}), trials=6)
    assert result.policy.name == "good"
    assert listener.bounds is not None
    assert "no stages fit together" in listener.bounds.set_aside["composed"]
    assert "no composition beat the best published policy: no stages fit together" in "\n".join(result.sentences())


def test_without_published_policies_compositions_are_searched_and_stand_alone() -> None:
    result = _short(FakeBench(quality), policies=[])
    assert uses(result.policy) == BEST
    assert "stands alone: no published policy met the target" in "\n".join(result.sentences())


def test_nothing_published_and_nothing_to_compose_is_an_error_in_words() -> None:
    with pytest.raises(TuneError, match=r"nothing to search.*composed \(no stages fit together"):
        _short(FakeBench(quality), policies=[], compositions=grammar({"test.cuts": STAGES["test.cuts"]}))


def test_a_policy_named_as_compositions_are_is_refused() -> None:
    with pytest.raises(UsageError, match="rename it"):
        _short(FakeBench(quality), policies=[fake_policy("composed")])


def test_a_composition_that_costs_time_of_its_own_keeps_fewer_tokens_instead_of_missing_the_target() -> None:
    class Costly(FakeBench):
        def true_ms(self, policy: Policy | None) -> float:
            return super().true_ms(policy) + (60.0 if policy and "planted.score" in uses(policy) else 0.0)

    bench, listener = Costly(quality), Recorder()
    _short(bench, listener)
    planted = [trial for trial in listener.trials if "planted" in trial.policy and not trial.settings]
    assert planted
    assert all(trial.verdict != "too slow" and trial.latency.value > 180 for trial in planted if trial.latency)


def test_where_the_target_is_met_already_the_fastest_composition_within_the_drop_is_found() -> None:
    def good_enough(policy: Policy) -> float:
        return 0.9 if uses(policy) == BEST else 0.5

    result = _short(FakeBench(good_enough), latency_ms=10_000.0, trials=24)
    assert uses(result.policy) == BEST
    assert result.composition is not None
    assert result.composition.beat


class BreaksWhenPlanning(Planted):
    """Raises in its hook."""

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        raise LookupError("on purpose")


class BreaksWhenAsked(STAGES["test.top"]):  # type: ignore[misc]
    """Raises when asked what it reaches."""

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        raise LookupError("on purpose")


class PlanningBench(FakeBench):
    """Plans a video before it is timed, as a model would."""

    def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
        if policy is not None and "broken" in uses(policy):
            policy.plan(torch.randn(8, 16, 4))
        return super().timed(policy, clip_index, metric)


@pytest.mark.parametrize("stage", [BreaksWhenPlanning, BreaksWhenAsked])
def test_a_stage_that_raises_costs_its_trials_and_is_named(stage: type[Stage]) -> None:
    listener = Recorder()
    result = _short(PlanningBench(quality), listener, compositions=grammar({**FEW, "broken": stage}), trials=20)
    failed = [trial for trial in listener.trials if trial.verdict == "failed"]
    assert failed
    assert all("stage 'broken'" in trial.reason and "LookupError" in trial.reason for trial in failed)
    assert uses(result.policy) == BEST


def test_a_resumed_search_keeps_its_compositions_and_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "study.db"
    first = _short(FakeBench(quality), trials=6, storage=place)
    second = _short(FakeBench(quality), trials=14, storage=place)
    assert second.search["trials_resumed"] == 6
    assert [trial.policy for trial in second.trials[:6]] == [trial.policy for trial in first.trials]
    assert [trial.retention_ratio for trial in second.trials[:6]] == [t.retention_ratio for t in first.trials]
    proposed = [trial.policy for trial in second.trials if trial.composed and trial.number % 3 and not trial.settings]
    assert len(set(proposed[: _few().count()])) == _few().count()
    assert uses(second.policy) == BEST


def test_a_plugin_that_is_missing_when_a_search_is_resumed_is_told(tmp_path: Path) -> None:
    place = tmp_path / "study.db"
    _short(FakeBench(quality), trials=6, storage=place)
    left = {name: stage for name, stage in FEW.items() if name != "planted.score"}
    with pytest.raises(StudyMismatchError, match=r"stage: planted\.score: \w+ .*in the study, not there now"):
        _short(FakeBench(quality), trials=6, storage=place, compositions=grammar(left))


def test_patience_does_not_end_the_search_before_compositions_were_tried() -> None:
    listener = Recorder()
    policies = [fake_policy(name) for name in ("good", *(f"bad-{i}" for i in range(5)))]
    _short(
        FakeBench(lambda p: 0.3 if p.name.startswith("bad-") else quality(p)),
        listener,
        policies=policies,
        patience=3,
        trials=20,
    )
    assert any(trial.composed for trial in listener.trials)


def _verdict(low: float, value: float, high: float) -> CompositionVerdict:
    return CompositionVerdict(
        tried=9,
        composition="a-and-b",
        published="good",
        difference=Interval(value, low, high, 200, 0.95),
        composition_latency_ratio=0.401,
        published_latency_ratio=0.398,
    )


@pytest.mark.parametrize(
    ("difference", "begins"),
    [
        ((0.01, 0.02, 0.03), "the composition a-and-b beat the best published policy, good: +2.0 points [+1.0, +3.0]"),
        ((-0.01, 0.01, 0.03), "the composition a-and-b did not clearly beat the best published policy, good: +1.0"),
        ((-0.03, -0.01, 0.01), "no composition beat the best published policy, good; the best, a-and-b: -1.0 points"),
    ],
)
def test_the_verdict_is_one_sentence_whichever_way_it_came_out(
    difference: tuple[float, float, float], begins: str
) -> None:
    sentence = _verdict(*difference).sentence
    assert sentence.startswith(begins)
    assert sentence.endswith("on held-out examples, at 40.1% and 39.8% of the uncompressed time")
