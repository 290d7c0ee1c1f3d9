"""Rows of the table of policy and controls: time as a share of the uncompressed model's, which does not drift."""

from dataclasses import dataclass

from vidsieve.report.number_format import NOT_MEASURED, percent, percent_interval, points, points_interval
from vidsieve.tuner.controls.control import Control
from vidsieve.tuner.judge.statistics import Interval
from vidsieve.tuner.measure.latency import Latency
from vidsieve.tuner.result import TuneResult


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
