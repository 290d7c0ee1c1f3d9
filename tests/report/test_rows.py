"""What stands in the rows of the page: policy and controls side by side, leaders, target, a policy measured again."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from report.made import found, trial
from report.reading import Reading

from vidsieve.report import report_html
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.statistics import Interval


@cache
def full() -> TuneResult:
    return found()


def told(result: TuneResult) -> str:
    return Reading(report_html(result)).text


def with_provenance(result: TuneResult, **more: Any) -> TuneResult:
    return replace(result, policy=replace(result.policy, provenance={**result.policy.provenance, **more}))


def shifted(latency: Latency, ratio: float) -> Latency:
    return replace(latency, ratio=Interval(ratio, 0.98 * ratio, 1.02 * ratio, 20))


def test_the_policy_stands_above_the_controls_with_its_share_of_the_time() -> None:
    result = full()
    assert result.latency is not None
    ratio = result.latency.ratio
    share = f"{ratio.value:.1%} [{ratio.low:.1%}, {ratio.high:.1%}]"
    text = told(result)
    assert text.index(share) < text.index(f"{result.controls[0].name} ", text.index("time, of uncompressed"))


@pytest.mark.parametrize(("factor", "word"), [(0.5, "faster"), (1.5, "slower")])
def test_a_control_of_another_latency_is_no_fair_comparison(factor: float, word: str) -> None:
    result = full()
    assert result.latency is not None
    latency = shifted(result.latency, factor * result.latency.ratio.value)
    apart = replace(result, controls=(replace(result.controls[0], latency=latency),))
    near = replace(result, controls=(replace(result.controls[0], latency=result.latency),))
    assert f"this control is {word} than the policy" in told(apart)
    assert "this control is" not in told(near)


def test_leaders_ranked_once_more_are_a_table_and_no_raw_data() -> None:
    leader = {
        "trial": 7,
        "policy": "good",
        "retention_ratio": 0.25,
        "change_points": -1.25,
        "error_points": 0.8,
        "correct_change_points": -2.0,
        "p_gold_change_points": -0.5,
    }
    rerank = {"examples": 64, "examples_scored": 128, "changed_order": True, "leaders": [leader]}
    text = told(with_provenance(full(), rerank=rerank))
    assert "on 64 further examples" in text
    assert "That changed their order." in text
    assert "7 good 25.0% -1.2 ± 0.8 -2.0" in text
    assert "{'trial'" not in text
    assert "were not ranked once more: no time" in told(with_provenance(full(), rerank={"skipped": "no time"}))


def test_checks_of_the_search_are_told_in_words() -> None:
    proxy = {"configurations": 12, "r": 0.834, "slope": 1.1, "bias_points": 0.4, "trusted": True}
    text = told(replace(full(), search={**full().search, "proxy": proxy, "latency_model_error": 0.0268}))
    assert "p(gold) follows accuracy yes: r = 0.83 over 12 configurations" in text
    assert "latency model off by 2.7% at most" in text
    unknown = proxy | {"configurations": 1, "r": None, "trusted": None}
    assert "cannot be told from 1 configuration " in told(replace(full(), search={**full().search, "proxy": unknown}))


def test_a_target_that_is_a_ratio_is_told_as_one() -> None:
    result = full()
    asked = with_provenance(result, target={"metric": "ttft_ms", "value_ms": 200.0, "speedup": 1.5})
    assert "Target: 1.5× as fast, at the start 200 ms (ttft)." in told(asked)
    assert "Target: 200 ms (ttft)." in told(result)


@pytest.mark.parametrize(("ratio", "word"), [(0.6, "not shown to meet"), (0.7, "misses")])
def test_a_target_within_the_value_and_not_within_the_interval_is_not_called_missed(ratio: float, word: str) -> None:
    result = full()
    assert result.latency is not None
    asked = with_provenance(result, target={"metric": "ttft_ms", "value_ms": 200.0, "speedup": 1.5})
    missed = replace(asked, confirmed=False, latency=shifted(result.latency, ratio))
    assert f"! {word} the target of 1.5× as fast" in told(missed)


@pytest.mark.parametrize(("shift", "word"), [(0.01, "fewer than in its trial"), (-0.01, "more than in its trial")])
def test_another_retention_at_the_end_is_told(shift: float, word: str) -> None:
    result = full()
    assert result.policy.retention_ratio is not None
    before = trial(1, policy=result.policy.name, retention_ratio=result.policy.retention_ratio + shift, settings={})
    text = told(replace(result, trials=(before,)))
    assert f"keeps {result.policy.retention_ratio:.1%} of the tokens in the end: {word}" in text
    same = replace(before, retention_ratio=result.policy.retention_ratio)
    assert "of the tokens in the end" not in told(replace(result, trials=(same,)))


def test_a_policy_measured_again_has_no_empty_parts_of_a_search() -> None:
    page = report_html(replace(full(), trials=(), search={}, controls=(), importance={}))
    reading = Reading(page)
    assert "a policy measured again" in reading.text
    for missing in ("All trials", "The search", "nothing to draw", "no controls", "Which settings mattered"):
        assert missing not in reading.text
    assert "Where the time goes" in reading.text
    # no link of the page leads nowhere
    assert all(f'id="{target[1:]}"' in page for target in reading.loads if target.startswith("#"))
