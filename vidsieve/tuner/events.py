"""What the tuner reports while it works. The command line draws it; the default listener is silent."""

from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.result import Bounds, TrialEvent, TuneResult


class Listener:
    """Hears what happens; override what you care about. An exception raised here ends the search."""

    def step(self, what: str, done: int, total: int) -> None:
        """Progress inside one piece of work, such as ("score uncompressed", 40, 200)."""

    def started(self, bounds: Bounds) -> None:
        """The bounds are measured; the search begins."""

    def trial(self, event: TrialEvent) -> None:
        """A trial is over."""

    def confirming(self, policy: Policy) -> None:
        """This policy goes to latency confirmation and then to the held-out examples."""

    def finished(self, result: TuneResult) -> None:
        """The result stands."""

    def notice(self, text: str) -> None:
        """A sentence worth knowing: a search that goes on where it stopped, a check that was made."""

    def stopping(self) -> None:
        """Ctrl-C came while a trial runs: it is finished first. A second one stops at once."""

    def interrupted(self, result: TuneResult | None) -> None:
        """Ctrl-C came; `result` is the best so far, unconfirmed, or None if there was none yet."""
