import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib
import pytest
from report.made import found, trial

from vidsieve.framework.errors import UsageError
from vidsieve.report import pareto_figure, report_html, write_pareto
from vidsieve.report.points import chosen_trial, front, most_telling, points_of
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.statistics import Interval, ms


@cache
def full() -> TuneResult:
    return found()


def at(number: int, at_ms: float, change: float | None, verdict: str = "feasible", **fields: object) -> object:
    return trial(number, latency=Interval(at_ms, at_ms, at_ms, 10), change_points=change, verdict=verdict, **fields)


def legend(result: TuneResult) -> list[str]:
    return [text.get_text() for text in pareto_figure(result).legends[0].get_texts()]


def test_the_front_is_what_nothing_beats() -> None:
    trials = [
        at(1, 100, -5.0),
        at(2, 110, -6.0),  # slower and worse than 1
        at(3, 120, -2.0),
        at(4, 120, -3.0),  # as slow as 3, and worse
        at(5, 130, -2.0),  # slower than 3, no better
        at(6, 90, -1.0, "pruned"),  # scored in part: no place on the front
        at(7, 140, None, "too slow"),
        at(8, 150, 0.5, "too slow"),
    ]
    points = points_of(trials)  # type: ignore[arg-type]
    assert [point.number for point in front(points)] == [1, 3, 8]
    kinds = {point.number: point.kind for point in points}
    assert (kinds[1], kinds[6], kinds[7], kinds[8]) == ("fits", "pruned", "unscored", "misses")


def test_the_chosen_trial_has_the_policys_settings_and_the_nearest_ratio() -> None:
    result = full()
    power = {"fake.score.power": result.policy.stages[0].stage.power}  # type: ignore[attr-defined]
    ratio = result.policy.retention_ratio or 0.0
    trials = (
        trial(1, settings=power, retention_ratio=ratio + 0.05),
        trial(2, settings=power, retention_ratio=ratio + 0.01),
        trial(3, settings={"fake.score.power": 0.5}, retention_ratio=ratio),
        trial(4, settings=power, retention_ratio=ratio, verdict="too slow"),
        trial(5, settings=power, retention_ratio=ratio, policy="bad"),
        trial(6, settings=power | {"fake.gone.share": 0.5}, retention_ratio=ratio),
    )
    chosen = chosen_trial(replace(result, trials=trials))
    assert chosen is not None and chosen.number == 2
    assert chosen_trial(replace(result, trials=trials[2:])) is None


def test_of_many_trials_new_bests_and_the_highest_are_kept_in_order() -> None:
    trials = [trial(n, change_points=-float(n)) for n in range(1, 11)]
    trials[8] = replace(trials[8], verdict="new best")
    trials[0] = replace(trials[0], change_points=None)
    assert [event.number for event in most_telling(trials, 3)] == [2, 3, 9]


def test_the_legend_names_what_is_drawn_and_nothing_else() -> None:
    plain = legend(replace(full(), controls=(), trials=(trial(1), trial(2, policy="bad"))))
    assert plain[:2] == ["good", "bad"]
    assert not [label for label in plain if "stopped" in label or "slow" in label or "random" in label]
    more = legend(replace(full(), trials=(trial(1, verdict="pruned"), at(2, 230.0, None, "too slow"))))  # type: ignore[arg-type]
    assert {"stopped early", "at the edge: not scored", "random, held-out", "target 200 ms"} <= set(more)


def test_a_far_baseline_has_a_panel_of_its_own_and_a_near_one_has_not() -> None:
    assert len(pareto_figure(full()).axes) == 2
    assert len(pareto_figure(replace(full(), trials=(at(1, 30.0, -1.0), at(2, 450.0, 0.0)))).axes) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target_ms", "baseline_ms"),
    [(470.0, 500.0), (300.0, 50_000.0), (10_000.0, 500.0), (1e6, 50_000.0), (2.0, 520.0), (1_000.0, 20.0)],
)
def test_the_trials_fill_the_picture_wherever_target_and_baseline_lie(target_ms: float, baseline_ms: float) -> None:
    trials = tuple(at(n, 300.0 + 20 * n, -float(n)) for n in range(1, 10))
    result = with_baseline(replace(full(), trials=trials, target_ms=target_ms, latency=None, controls=()), baseline_ms)  # type: ignore[arg-type]
    figure = pareto_figure(result)
    main = figure.axes[0]
    low, high = main.get_xlim()
    shown = [x for line in main.lines if str(line.get_marker()) in "os" for x in line.get_xdata()]
    assert (min(shown), max(shown)) == (320.0, 480.0)
    assert low < 320.0 and high > 480.0
    assert 160.0 / (high - low) >= 0.3
    arrows = [text.get_text() for text in main.texts if "target" in text.get_text()]
    side = "" if low <= target_ms <= high else "\u2192" if target_ms > high else "\u2190"
    assert [side in text for text in arrows] == ([True] if side else [])
    words = [*(text.get_text() for text in main.texts), *(text.get_text() for text in figure.legends[0].get_texts())]
    assert any(f"target {ms(target_ms)} ms" in word for word in words)
    assert any(f"uncompressed {ms(baseline_ms)} ms" in word for word in words)


def test_the_page_marks_a_far_target_at_the_edge_too() -> None:
    assert "target 90000 ms \u2192" in report_html(replace(full(), target_ms=90_000.0))
    assert "\u2190 target 1 ms" in report_html(replace(full(), target_ms=1.0))
    assert "\u2192" not in report_html(full())


def with_baseline(result: TuneResult, baseline_ms: float) -> TuneResult:
    provenance = dict(result.policy.provenance) | {"bounds": {"uncompressed_ms": {"value": baseline_ms}}}
    return replace(result, policy=replace(result.policy, provenance=provenance))


def test_the_same_result_gives_the_same_svg_in_threads_too(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    paths = [tmp_path / f"{i}.svg" for i in range(3)]
    write_pareto(full(), paths[0])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: write_pareto(full(), path), paths[1:]))
    texts = {path.read_text(encoding="utf-8") for path in paths}
    assert len(texts) == 1
    root = ElementTree.fromstring(texts.pop())
    told = " ".join(root.itertext())
    assert "no accuracy claim" in told
    assert "target 200 ms" in told
    assert dict(matplotlib.rcParams) == before


def test_hostile_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "$\\frac{", "_hidden", "a\x00b", "")
    trials = tuple(trial(n, policy=name) for n, name in enumerate(names, start=1))
    path = write_pareto(replace(full(), trials=trials), tmp_path / "hostile.svg")
    told = " ".join(ElementTree.parse(path).getroot().itertext())
    assert all(name in told for name in (*names[:3], "a\ufffdb", "no name"))


def test_no_trials_are_said_to_be_none(tmp_path: Path) -> None:
    path = write_pareto(replace(full(), trials=()), tmp_path / "empty.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    texts = [text.get_text() for text in pareto_figure(replace(full(), trials=())).texts]
    assert texts == ["No trial was timed: there is nothing to draw."]


def test_other_suffixes_and_taken_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.svg or \.png, got '\.jpg'"):
        write_pareto(full(), tmp_path / "front.jpg")
    taken = tmp_path / "front.svg"
    taken.write_text("mine")
    with pytest.raises(UsageError, match=r"picture .*exists already"):
        write_pareto(full(), taken)
    assert taken.read_text() == "mine"


def test_compositions_share_one_mark_however_many_they_are() -> None:
    made = tuple(trial(number, policy=f"a-and-b{number}", composed=True) for number in range(2, 9))
    labels = legend(replace(full(), controls=(), trials=(trial(1), *made)))
    assert labels.count("compositions") == 1
    assert not any(label.startswith("a-and-b") for label in labels)
