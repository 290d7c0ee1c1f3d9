"""What was promised of a model before it was measured, with what came out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """A threshold and the measured share; `came` is None where it was not measured, for the reason `absent`."""

    what: str
    came: float | None
    least: float | None = None
    most: float | None = None
    absent: str = "not measured"

    @property
    def met(self) -> bool:
        """Whether the measured share is within the bound."""
        if self.came is None:
            return False
        return (self.least is None or self.came >= self.least) and (self.most is None or self.came <= self.most)

    def __str__(self) -> str:
        bound = f"at most {100 * self.most:.0f}" if self.most is not None else f"at least {100 * (self.least or 0):.0f}"
        if self.came is None:
            return f"- {self.what}, {bound}: {self.absent}"
        return f"- {self.what}, {bound}: measured {100 * self.came:.1f}, {'met' if self.met else '**missed**'}"


def written(promises: Sequence[Promise]) -> list[str]:
    """One line each."""
    return [str(promise) for promise in promises]
