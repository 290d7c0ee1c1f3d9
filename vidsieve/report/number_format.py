"""Numbers and foreign text as the report prints them."""

from collections.abc import Iterable

from vidsieve.tuner.statistics import Interval, ms

NOT_MEASURED = ""
LONGEST = 160
"""Characters of a reason, name or setting that are shown; reports stay small whatever a plugin writes."""


def decimals(values: Iterable[float]) -> int:
    """Count the decimals a column of milliseconds needs for four digits of its largest value, so that it lines up."""
    largest = max((abs(value) for value in values), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 10 else 3


def ms_interval(interval: Interval) -> str:
    """Write '[192.1, 194.9]'."""
    return f"[{ms(interval.low)}, {ms(interval.high)}]"


def points(value: float) -> str:
    """Write percentage points, always with a sign: '-0.4'."""
    return f"{value:+.1f}"


def points_interval(fractions: Interval) -> str:
    """Write an interval of fractions as '[-2.2, +1.4]' points."""
    scaled = fractions.scaled(100)
    return f"[{points(scaled.low)}, {points(scaled.high)}]"


def percent(fraction: float) -> str:
    """Write '60.8%'."""
    return f"{fraction:.1%}"


def percent_interval(fractions: Interval) -> str:
    """Write '[57.0%, 64.4%]'."""
    return f"[{percent(fractions.low)}, {percent(fractions.high)}]"


def speed(ratio: Interval) -> tuple[str, str]:
    """Write latency ÷ baseline as a speed-up with its interval: ('2.70×', '[2.65, 2.74]')."""
    return f"{1 / ratio.value:.2f}×", f"[{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"


def visible(text: object) -> str:
    """Replace every character of foreign text that XML or a terminal cannot show."""
    return "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in str(text))


def plain(text: object, longest: int = LONGEST) -> str:
    """Put `visible` text on one line, cut where it is too long."""
    line = " ".join(visible(text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
