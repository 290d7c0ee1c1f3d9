"""What the tuner reports while it works. The command line draws it; the default listener is silent."""

from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.result import Bounds, TrialEvent, TuneResult


class Listener:
    """Receive the events of a search; override what is needed. An exception raised here ends the search."""

    def step(self, what: str, done: int, total: int) -> None:
        """Receive progress inside one piece of work, such as ("score uncompressed", 40, 200)."""

    def started(self, bounds: Bounds) -> None:
        """Receive the measured bounds when the search begins."""

    def trial(self, event: TrialEvent) -> None:
        """Receive a finished trial."""

    def confirming(self, policy: Policy) -> None:
        """Receive the policy that goes to latency confirmation and then to the held-out examples."""

    def finished(self, result: TuneResult) -> None:
        """Receive the result."""

    def notice(self, text: str) -> None:
        """Receive a sentence for the user, such as that a study is resumed."""

    def stopping(self) -> None:
        """Receive Ctrl-C during a trial: the trial is finished first; a second Ctrl-C stops at once."""

    def interrupted(self, result: TuneResult | None) -> None:
        """Receive the best result so far, or None, when Ctrl-C or an error ends the search."""
