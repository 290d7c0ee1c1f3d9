"""Rows of the report's tables, as text and widths.

The policy's and the controls' time is a share of the uncompressed model's, which does not drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidsieve.report.number_format import NOT_MEASURED, decimals, percent, percent_interval, points, points_interval
from vidsieve.report.points import COLOURS, FAINT, chosen_trial, most_telling
from vidsieve.tuner.measured import Control, Latency
from vidsieve.tuner.result import TrialEvent, TuneResult
from vidsieve.tuner.statistics import Interval

PARTS = {
    "video_ms": "decode the video",
    "preprocess_ms": "preprocess",
    "vision_ms": "vision tower",
    "compress_ms": "compress",
    "prefill_ms": "prefill",
    "decode_step_ms": "decode, one token",
}
REST, WHOLE = "further tokens and the rest", "whole request"
LEAST_REST = 0.005
MOST_TRIALS, MOST_SETTINGS, MOST_FACTS = 150, 12, 120
SHOWN_ELSEWHERE = ("policies", "set_aside", "failures", "verdicts", "proxy", "latency_model_error")


@dataclass(frozen=True)
class Part:
    """A part of a request: `widths` in percent of the longer bar, uncompressed and policy."""

    name: str
    colour: str
    uncompressed: str
    policy: str
    saved: str
    widths: tuple[float, float]


def parts(result: TuneResult) -> list[Part]:
    """List the parts of a request, the whole last (without colour); empty if not measured for both sides."""
    before, after = (_parts(result.breakdown.get(side) or {}) for side in ("uncompressed", "policy"))
    if not before or not after:
        return []
    longest = max(before[WHOLE], after[WHOLE]) or 1.0
    digits = decimals([longest])
    colours = dict(zip(PARTS.values(), COLOURS, strict=True)) | {REST: FAINT}
    rows = []
    for name in dict.fromkeys([*PARTS.values(), REST, WHOLE]):
        old, new = before.get(name), after.get(name)
        if old is None and new is None:
            continue
        widths = tuple(round(100 * max(0.0, value or 0.0) / longest, 3) for value in (old, new))
        uncompressed, policy = (f"{value:.{digits}f}" if value is not None else NOT_MEASURED for value in (old, new))
        saved = f"{(old or 0.0) - (new or 0.0):.{digits}f}"
        rows.append(Part(name, colours.get(name, ""), uncompressed, policy, saved, (widths[0], widths[1])))
    return rows


def _parts(measured: Mapping[str, float]) -> dict[str, float]:
    """Name the parts, the whole, and what the parts leave over of it."""
    found = {words: float(measured[name]) for name, words in PARTS.items() if name in measured}
    if not found:
        return {}
    total = sum(found.values())
    whole = float(measured.get("e2e_ms", total))
    if whole - total > LEAST_REST * whole:
        found[REST] = whole - total
    return found | {WHOLE: whole}


@dataclass(frozen=True)
class Share:
    """A searched setting and how much of the score it explains."""

    name: str
    share: str
    width: float


def importance_rows(result: TuneResult) -> list[Share]:
    """List the dozen settings that explain most."""
    named = {("which policy" if name == "policy" else name): share for name, share in result.importance.items()}
    largest = sorted(named.items(), key=lambda item: -item[1])[:MOST_SETTINGS]
    return [Share(name, f"{share:.0%}", round(100 * min(1.0, max(0.0, share)), 2)) for name, share in largest]


@dataclass(frozen=True)
class TrialRow:
    """A trial; `chosen` if the result's policy came from it."""

    number: int
    policy: str
    verdict: str
    retention: str
    latency: str
    interval: str
    change: str
    scored: str
    settings: str
    reason: str
    chosen: bool


def trial_rows(result: TuneResult) -> list[TrialRow]:
    """List the trials in order; of very many, the most telling."""
    chosen = chosen_trial(result)
    shown = most_telling(result.trials, MOST_TRIALS)
    digits = decimals(trial.latency.high for trial in shown if trial.latency)
    return [_trial_row(trial, chosen is not None and trial.number == chosen.number, digits) for trial in shown]


def _trial_row(trial: TrialEvent, chosen: bool, digits: int) -> TrialRow:
    latency, own = trial.latency, f"{trial.policy}."
    return TrialRow(
        number=trial.number,
        policy=trial.policy,
        verdict=trial.verdict,
        retention=percent(trial.retention_ratio) if trial.retention_ratio is not None else NOT_MEASURED,
        latency=f"{latency.value:.{digits}f}" if latency else NOT_MEASURED,
        interval=f"[{latency.low:.{digits}f}, {latency.high:.{digits}f}]" if latency else NOT_MEASURED,
        change=points(trial.change_points) if trial.change_points is not None else NOT_MEASURED,
        scored=str(trial.scored) if trial.scored else NOT_MEASURED,
        settings=", ".join(f"{n.removeprefix(own)}={_value(value)}" for n, value in trial.settings.items()),
        reason=trial.reason,
        chosen=chosen,
    )


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def search_facts(result: TuneResult) -> list[tuple[str, str]]:
    """List facts of the search as pairs; what other tables show is left out."""
    shown = {key: value for key, value in result.search.items() if key not in SHOWN_ELSEWHERE}
    checks: dict[str, Any] = {}
    if result.search.get("proxy"):
        checks["p(gold) follows accuracy"] = _followed(result.search["proxy"])
    if result.search.get("latency_model_error") is not None:
        checks["latency model"] = f"off by {percent(result.search['latency_model_error'])} at most"
    return facts({"policies searched": ", ".join(map(str, result.search.get("policies", ())))} | shown | checks)


def _followed(proxy: Mapping[str, Any]) -> str:
    """Write the check of p(gold)."""
    count = proxy["configurations"]
    over = f"{count} configuration{'' if count == 1 else 's'}"
    if proxy["trusted"] is None or proxy["r"] is None:
        return f"cannot be told from {over}"
    return f"{'yes' if proxy['trusted'] else 'no'}: r = {proxy['r']:.2f} over {over}"


def facts(nested: Mapping[str, Any], label: str = "") -> list[tuple[str, str]]:
    """Flatten nested numbers and text to pairs; an interval in one line; what is empty is left out."""
    found: list[tuple[str, str]] = []
    for key, value in nested.items():
        name = f"{label} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
            found.append((name, f"{_value(value['value'])} [{_value(value['low'])}, {_value(value['high'])}]"))
        elif isinstance(value, Mapping):
            found += facts(value, name)
        elif isinstance(value, (list, tuple)):
            found.append((name, ", ".join(map(_value, value))))
        elif value is not None and value != "":
            found.append((name, _value(value)))
    return [(name, text) for name, text in found if text][:MOST_FACTS]


@dataclass(frozen=True)
class LeaderRow:
    """A leader, best first. `change` is the estimate that ranks, `answers` that of right and wrong alone; points."""

    trial: int
    policy: str
    retention: str
    change: str
    answers: str


def leader_rows(result: TuneResult) -> list[LeaderRow]:
    """List the leaders that were ranked anew; none where that was skipped."""
    return [_row(leader) for leader in _rerank(result).get("leaders", ())]


def leaders_sentence(result: TuneResult) -> str:
    """Say in a sentence how the leaders were ranked anew, or why not; empty where nothing is known."""
    rerank = _rerank(result)
    if rerank.get("skipped"):
        return f"The leaders were not ranked once more: {rerank['skipped']}."
    if not rerank.get("leaders"):
        return ""
    order = "That changed their order." if rerank.get("changed_order") else "Their order stayed as it was."
    return f"The leaders of the search on {rerank['examples']} further examples, which had chosen none of them. {order}"


def _rerank(result: TuneResult) -> Mapping[str, Any]:
    return result.policy.provenance.get("rerank") or {}


def _row(leader: Mapping[str, Any]) -> LeaderRow:
    ratio = leader["retention_ratio"]
    return LeaderRow(
        trial=leader["trial"],
        policy=leader["policy"],
        retention=percent(ratio) if ratio is not None else NOT_MEASURED,
        change=f"{points(leader['change_points'])} ± {leader['error_points']:.1f}",
        answers=points(leader["correct_change_points"]),
    )


@dataclass(frozen=True)
class ControlRow:
    """The policy or a control. `time` is of the uncompressed model's, measured in pairs."""

    name: str
    retention: str
    time: str
    accuracy: str
    advantage: str
    remark: str
    chosen: bool = False


def control_rows(result: TuneResult) -> list[ControlRow]:
    """List the policy, then every control, a failed one with its reason; empty without controls."""
    rows = [_control_row(control, result.latency) for control in result.controls]
    return [_policy_row(result), *rows] if rows else []


def _policy_row(result: TuneResult) -> ControlRow:
    ratio = result.accuracy.attained_retention if result.accuracy else None
    return ControlRow(
        name=result.policy.name,
        retention=_percent(result.policy.retention_ratio if ratio is None else ratio),
        time=_share(result.latency.ratio if result.latency else None),
        accuracy=_share(result.accuracy.policy if result.accuracy else None),
        advantage=NOT_MEASURED,
        remark="the policy",
        chosen=True,
    )


def _control_row(control: Control, winner: Latency | None) -> ControlRow:
    gained = control.advantage
    return ControlRow(
        name=_name(control),
        retention=_percent(control.retention_ratio),
        time=_share(control.latency.ratio if control.latency else None),
        accuracy=_share(control.accuracy),
        advantage=f"{points(100 * gained.value)} {points_interval(gained)}" if gained else NOT_MEASURED,
        remark=_remark(control) + _pace(control, winner),
    )


def _name(control: Control) -> str:
    """Name the control, and of a smaller input how small."""
    if control.kind is None or control.input_ratio is None:
        return control.name
    return f"{control.name} ({percent(control.input_ratio)} of the {control.kind})"


def _remark(control: Control) -> str:
    if control.advantage is None:
        return control.warning
    if control.advantage.value <= 0:
        return "the policy does not beat it"
    return "the policy is clearly better" if control.advantage.low > 0 else "the policy is not clearly better"


def _pace(control: Control, winner: Latency | None) -> str:
    """Remark where a control is clearly faster or slower than the policy: that comparison is not quite fair."""
    if control.latency is None or winner is None:
        return ""
    if control.latency.ratio.high < winner.ratio.low:
        return "; but this control is faster than the policy"
    return "; but this control is slower than the policy" if control.latency.ratio.low > winner.ratio.high else ""


def _share(measured: Interval | None) -> str:
    return f"{percent(measured.value)} {percent_interval(measured)}" if measured else NOT_MEASURED


def _percent(ratio: float | None) -> str:
    return percent(ratio) if ratio is not None else NOT_MEASURED
