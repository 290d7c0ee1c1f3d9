import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from report.made import BREAKDOWN, found, trial
from report.reading import Reading
from tuner.fake_bench import FakeBench
from tuner.searching import Recorder, quality, search

from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.report import report_html, write_report
from vidsieve.tuner.measured import Control
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.search.trial_loop import Interrupted

MOST_BYTES = 300_000
HOSTILE = "<script>alert('x')</script>\"&amp;$x^2$ {{ 7*7 }} \x00\x1b[31m\u202e"


@cache
def full() -> TuneResult:
    return found()


def numbers(text: str) -> set[str]:
    return set(re.findall(r"[-+]?\d+(?:\.\d+)?", text))


def test_the_page_is_one_balanced_file_that_loads_nothing() -> None:
    page = report_html(full())
    reading = Reading(page)
    assert not {"script", "link", "iframe", "img", "object", "form"} & set(reading.tags)
    assert all(target.startswith("#") for target in reading.loads), reading.loads
    assert not reading.handlers
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert len(page.encode()) < MOST_BYTES


def test_every_number_of_the_verdict_stands_in_the_page() -> None:
    result = full()
    told = Reading(report_html(result)).text
    for sentence in result.sentences():
        assert numbers(sentence)
        assert sentence.removeprefix("warning: ") in told
    # beside the sentences: in the tiles
    assert result.latency is not None and result.accuracy is not None
    assert f"{result.latency.policy_ms.value:.4g} ms" in told
    assert f"{100 * result.accuracy.difference.value:+.1f} points" in told


def test_controls_breakdown_importance_trials_and_provenance_stand_in_the_page() -> None:
    result = full()
    told = Reading(report_html(result)).text
    for control in result.controls:
        assert control.advantage is not None
        assert f"{control.name} " in told
        assert f"{100 * control.advantage.value:+.1f} [" in told
    assert "vision tower 150.2 151.0 -0.8" in told
    assert "whole request 615.8 365.8 250.0" in told
    assert "which policy 61%" in told
    assert all(
        f"{event.latency.value:.1f} [{event.latency.low:.1f}" in told for event in result.trials if event.latency
    )
    measured = result.policy.provenance["measured_on"]
    assert all(f"{key.replace('_', ' ')} {value}" in told for key, value in measured.items())
    assert result.policy.hash in told
    assert "vidsieve tune --confirm policy.yaml" in told
    assert result.policy.provenance["data"]["splits"]["heldout"]["ids_sha256"] in told


def test_exactly_the_trial_that_was_chosen_is_marked() -> None:
    result = found(latency_ms=250.0)
    rows = re.findall(r"<tr class=\"chosen\">.*?</tr>", report_html(result), re.S)
    assert len(rows) == 1
    power = result.policy.stages[0].stage.power  # type: ignore[attr-defined]
    assert f"power={power:.4g}" in rows[0]


def test_hostile_names_and_reasons_are_text() -> None:
    result = full()
    named = Policy(name=HOSTILE, retention_ratio=result.policy.retention_ratio, stages=result.policy.stages)
    provenance = dict(result.policy.provenance) | {"measured_on": {HOSTILE: HOSTILE}, "list": [HOSTILE, 1.5]}
    hostile = replace(
        result,
        policy=replace(named, provenance=provenance),
        warnings=(HOSTILE,),
        controls=(Control(name=HOSTILE, reason=HOSTILE),),
        trials=(trial(1, policy=HOSTILE, settings={HOSTILE: HOSTILE}, reason=HOSTILE), *result.trials),
        search=dict(result.search) | {"set_aside": {HOSTILE: HOSTILE}, "stopped_by": HOSTILE},
        importance={HOSTILE: 0.5},
    )
    page = report_html(hostile)
    reading = Reading(page)
    assert "script" not in reading.tags
    assert "<script>alert('x')</script>" in reading.text
    assert "{{ 7*7 }}" in reading.text
    assert "&amp;$x^2$" in reading.text
    assert not set("\x00\x1b\u202e") & set(page)


def interrupted() -> TuneResult:
    class Stops(Recorder):
        def trial(self, event: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        search(FakeBench(quality), Stops())
    assert caught.value.result is not None
    return caught.value.result


def test_an_interrupted_search_says_what_is_missing() -> None:
    told = Reading(report_html(interrupted())).text
    assert "latency not confirmed" in told
    assert "held-out examples not scored" in told
    assert "Run the same command again" in told
    assert "No controls were measured" in told
    assert "not measured for both sides" in told
    assert "Too few trials" in told


def test_the_policy_that_removes_nothing_is_a_recommendation_too() -> None:
    told = Reading(report_html(search(FakeBench(lambda policy: 0.2), latency_ms=900.0))).text
    assert "Keep the uncompressed model" in told
    assert "no policy was worth it" in told
    assert "nothing was chosen to compare" in told


def test_a_result_with_nothing_but_a_policy_renders() -> None:
    bare = TuneResult(
        policy=Policy(name="bare"), target_ms=200.0, already_met=False, latency=None, accuracy=None, confirmed=False
    )
    told = Reading(report_html(bare)).text
    assert "No trial was run" in told
    assert "there is nothing to draw" in told


def test_failed_trials_and_controls_show_their_reason() -> None:
    failed = trial(
        1, verdict="failed", latency=None, score=None, change_points=None, scored=0, reason="OutOfMemoryError: 3 GB"
    )
    result = replace(full(), trials=(failed,), controls=(Control(name="random", reason="needs vision_attention"),))
    told = Reading(report_html(result)).text
    assert "OutOfMemoryError: 3 GB" in told
    assert "control random could not be measured: needs vision_attention" in told


def test_half_a_breakdown_is_not_shown_as_a_comparison() -> None:
    half = replace(full(), breakdown={"uncompressed": BREAKDOWN["uncompressed"]})
    assert "not measured for both sides" in Reading(report_html(half)).text


def test_what_the_parts_leave_over_of_a_request_is_a_part_too() -> None:
    more = {side: parts | {"e2e_ms": parts["e2e_ms"] + 100} for side, parts in BREAKDOWN.items()}
    told = Reading(report_html(replace(full(), breakdown=more))).text
    assert "further tokens and the rest 100.0 100.0 0.0" in told
    assert "whole request 715.8 465.8 250.0" in told
    assert "further tokens" not in Reading(report_html(full())).text


def test_a_policy_measured_again_may_miss_the_target() -> None:
    told = Reading(report_html(replace(full(), confirmed=False, trials=()))).text
    assert "not shown to meet the target of 200 ms" in told
    assert "Run the same command again" not in told


def test_a_smaller_input_says_how_small() -> None:
    control = replace(full().controls[0], name="fewer-frames", kind="frames", input_ratio=0.5)
    told = Reading(report_html(replace(full(), controls=(control,)))).text
    assert "fewer-frames (50.0% of the frames)" in told


def test_a_very_long_search_stays_small_and_says_that_it_was_cut() -> None:
    settings = {f"some-stage.some_setting_{i}": 0.123456 * i for i in range(20)}
    many = tuple(trial(number, settings=settings, reason="x" * 5000) for number in range(1, 2001))
    page = report_html(replace(full(), trials=many))
    assert len(page.encode()) < MOST_BYTES
    assert "The 150 most telling of 2000" in Reading(page).text


def test_writing_keeps_to_html_and_replaces_nothing_unasked(tmp_path: Path) -> None:
    result = replace(full(), trials=())
    with pytest.raises(UsageError, match=r"must end in \.html, got '\.pdf'"):
        write_report(result, tmp_path / "report.pdf")
    path = write_report(result, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == report_html(result)
    with pytest.raises(UsageError, match=r"report .*exists already"):
        write_report(result, path)
    assert write_report(result, path, force=True) == path
