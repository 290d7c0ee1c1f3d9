"""Add up what each phase of a request took, measured at its own beginning and end."""

from collections import defaultdict

from vidsieve.framework.report import Stopwatch


class PhaseTimes:
    """A `PhaseListener` that keeps the stopwatches of a request. What ran within a phase is taken out of it."""

    def __init__(self) -> None:
        self._ended: list[tuple[Stopwatch, list[Stopwatch]]] = []
        self._open: list[list[Stopwatch]] = []

    def begin(self, watch: Stopwatch) -> None:
        """Note that what ends before this one does lies within it."""
        self._open.append([])

    def end(self, watch: Stopwatch) -> None:
        """Keep the stopwatch with those that ran within it."""
        within = self._open.pop()
        self._ended.append((watch, within))
        if self._open:
            self._open[-1].append(watch)

    def ms(self) -> dict[str, float]:
        """Milliseconds by phase; on CUDA this waits for the work to end."""
        found: defaultdict[str, float] = defaultdict(float)
        for watch, within in self._ended:
            found[watch.phase] += watch.ms - sum(inner.ms for inner in within)
        return dict(found)
