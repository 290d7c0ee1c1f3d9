"""The top of the report: one sentence, badges that say how far it may be trusted, and the numbers."""

from dataclasses import dataclass
from typing import Literal

from vidsieve.report.number_format import ms_interval, percent, percent_interval, plain, points, points_interval, speed
from vidsieve.report.points import metric_of
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.statistics import in_points, ms

Mood = Literal["good", "warn", "plain"]
MEANING = {
    "ttft": "Time to first token: inputs on the device to the first token, vision tower and compression included.",
    "e2e": "End to end: from opening the video file to the last new token.",
}


@dataclass(frozen=True)
class Badge:
    """A few words with a mood; the mood is also a sign, for readers who see no colour."""

    text: str
    mood: Mood


@dataclass(frozen=True)
class Tile:
    """A number, its interval, and what it is compared with."""

    label: str
    value: str
    interval: str
    comparison: str


def measured_again(result: TuneResult) -> bool:
    """Whether this is no search, but a policy that was found before and measured once more."""
    return result.accuracy is not None and not result.trials and not result.search


def headline(result: TuneResult) -> str:
    """Write what to do in one sentence."""
    if result.policy.is_empty:
        return "Keep the uncompressed model"
    name = plain(result.policy.name, 60)
    if result.latency is None:
        return f"{name}: not measured"
    times, _ = speed(result.latency.ratio)
    ours, base = ms(result.latency.policy_ms.value), ms(result.latency.baseline_ms.value)
    when = "the first token comes" if metric_of(result) == "ttft" else "the whole answer comes"
    return f"With {name}, {when} after {ours}\u00a0ms instead of {base}\u00a0ms ({times}\u00a0as\u00a0fast)"


def target_words(result: TuneResult) -> str:
    """Write the target: '200 ms', or '1.5× as fast' where a ratio was requested."""
    speedup = result.policy.provenance.get("target", {}).get("speedup")
    return f"{ms(result.target_ms)} ms" if speedup is None else f"{speedup:g}× as fast"


def badges(result: TuneResult) -> list[Badge]:
    """Make the badges: confirmed, certified, better than the controls."""
    found = [_latency_badge(result), _accuracy_badge(result), _controls_badge(result)]
    return [badge for badge in found if badge is not None]


def _latency_badge(result: TuneResult) -> Badge | None:
    if result.latency is None:
        return None
    if result.confirmed:
        return Badge("latency confirmed apart from the search", "good")
    if result.accuracy is not None:
        verdict = "not shown to meet" if _reaches(result, result.latency) else "misses"
        return Badge(f"{verdict} the target of {target_words(result)}", "warn")
    return Badge("latency not confirmed: as in the search", "warn")


def _reaches(result: TuneResult, latency: Latency) -> bool:
    """Whether the measured value is within the target, though its interval need not be."""
    speedup = result.policy.provenance.get("target", {}).get("speedup")
    if speedup is None:
        return latency.policy_ms.value <= result.target_ms
    return 1 / latency.ratio.value >= speedup


def _accuracy_badge(result: TuneResult) -> Badge | None:
    accuracy = result.accuracy
    if accuracy is None:
        return Badge("held-out examples not scored", "warn")
    if result.policy.is_empty:
        return Badge("accuracy unchanged: nothing is removed", "plain")
    most = f"a drop of at most {in_points(accuracy.max_drop_points)}"
    if accuracy.certified:
        return Badge(f"certified: {most}", "good")
    return Badge(f"not certified for {most}: {accuracy.lacks}", "warn")


def _controls_badge(result: TuneResult) -> Badge | None:
    if result.policy.is_empty:
        return None
    if not result.controls:
        return None if measured_again(result) else Badge("no controls measured", "warn")
    short = [control.name for control in result.controls if control.warning]
    if short:
        return Badge(f"not shown to beat: {', '.join(short)}", "warn")
    return Badge("beats every control", "good")


def tiles(result: TuneResult) -> list[Tile]:
    """Make the tiles of what was measured: latency, speed, accuracy, change."""
    return [*_latency_tiles(result), *_accuracy_tiles(result)]


def _latency_tiles(result: TuneResult) -> list[Tile]:
    if result.latency is None:
        return []
    latency = result.latency
    base = latency.baseline_ms
    times, interval = speed(latency.ratio)
    return [
        Tile(
            f"latency ({latency.metric}, median)",
            f"{ms(latency.policy_ms.value)} ms",
            f"{ms_interval(latency.policy_ms)} ms",
            f"uncompressed {ms(base.value)} {ms_interval(base)} ms",
        ),
        Tile("as fast", times, interval, f"{latency.ratio.n} pairs, interleaved"),
    ]


def _accuracy_tiles(result: TuneResult) -> list[Tile]:
    if result.accuracy is None:
        return []
    a = result.accuracy
    return [
        Tile(
            f"held-out {a.metric}",
            percent(a.policy.value),
            percent_interval(a.policy),
            f"uncompressed {percent(a.baseline.value)} {percent_interval(a.baseline)}",
        ),
        Tile(
            "change, paired",
            f"{points(100 * a.difference.value)} points",
            f"{points_interval(a.difference)} points",
            f"{100 * a.difference.level:.3g}% interval; {a.lost} lost, {a.won} won of {a.n}",
        ),
    ]
