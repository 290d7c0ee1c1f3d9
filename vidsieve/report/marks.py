"""Colours and marks: told apart by people who do not see colours alike, and in print."""

from collections.abc import Iterable
from dataclasses import dataclass

from vidsieve.tuner.result import TuneResult

# Okabe and Ito's palette without black, which is text, and yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "h")
CONTROL_MARKERS = ("x", "+", "1", "2", "3")
INK = "#1b1f24"
FAINT = "#8d96a0"


@dataclass(frozen=True)
class Mark:
    """How a policy's trials are drawn."""

    colour: str
    marker: str


def marks_of(result: TuneResult) -> dict[str, Mark]:
    """A look for each policy with a trial. Colours and markers cycle at different lengths: 42 differ."""
    searched: Iterable[str] = result.search.get("policies", ())
    names = dict.fromkeys([*searched, *(trial.policy for trial in result.trials)])
    looks = {name: Mark(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    return {name: looks[name] for name in names if any(trial.policy == name for trial in result.trials)}
