"""Ctrl-C in a search."""

from vidsieve.framework.errors import TuneError
from vidsieve.tuner.result import TuneResult


class Interrupted(TuneError):
    """A search that was stopped by hand. `result` is the best so far, unconfirmed, or None."""

    exit_code = 130

    def __init__(self, result: TuneResult | None) -> None:
        self.result = result
        told = "nothing was found yet" if result is None else f"the best so far is {result.policy.name}"
        super().__init__(f"search: interrupted; {told}.")
