"""The same choice as in `greedy`, on the CPU: few tokens are looked at for a pick, and all of them once a block.

What a token is worth only falls as others are chosen, so what it was worth before is a bound (Minoux, "Accelerated
greedy algorithms", 1978). A block holds the tokens worth most. Picks go on among them until one outside may be worth
more; then all that was picked is told to all tokens at once, in products of matrices instead of a row a pick. numpy
runs the picks, as a call of it on a few numbers costs a third of one of torch.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.policies.shared.greedy import Field

BLOCK = 128
"""Tokens in a block: few enough for quick picks, and enough that a block gives many."""


class Block(ABC):
    """Some tokens; `values` are what each is worth, exactly, once those chosen from among them are counted."""

    values: Float[np.ndarray, " block"]

    @abstractmethod
    def choose(self, place: int) -> None:
        """Count one of them as chosen; it is worth -inf from now on."""

    @abstractmethod
    def close(self, places: Int[np.ndarray, " closing"]) -> None:
        """These are worth -inf from now on."""


class Worth(ABC):
    """What all tokens are worth. Before one is picked that is worth no more than `floor`, `settle` has a say."""

    values: Float[np.ndarray, " alive"]
    floor: float = -np.inf

    @abstractmethod
    def block(self, places: Int[np.ndarray, " block"]) -> Block:
        """These tokens."""

    @abstractmethod
    def settle(self, picks: Int[np.ndarray, " picks"], block: Any, open_: Bool[np.ndarray, " alive"]) -> None:
        """Bring `values` up to date with what was picked from a block, in order, given what can still be picked."""


class LazyChoice:
    """The picks from a field, block after block. A budget line without room closes; ties go to the lower index."""

    def __init__(self, field: Field) -> None:
        self.line, self.room, self.count = field.line.numpy(), field.room.tolist(), field.count
        self.open = field.room.numpy()[self.line] > 0
        self.picks: list[int] = []

    def take(self, pick: int) -> bool:
        """Make a pick; says whether its line has room for more."""
        line = self.line.item(pick)
        self.picks.append(pick)
        self.open[pick] = False
        self.room[line] -= 1
        if self.room[line]:
            return True
        self.open[self.line == line] = False
        return False

    def run(self, worth: Worth) -> Int[Tensor, " picks"]:
        """Pick until the count is reached. `worth` knows of what was taken before."""
        while len(self.picks) < self.count:
            places, bar, rival = _leading(np.where(self.open, worth.values, -np.inf))
            block, before = worth.block(places), len(self.picks)
            block.close((~self.open[places]).nonzero()[0])
            self._pick_within(block, places, bar, rival, worth.floor)
            if len(self.picks) < self.count:
                worth.settle(np.array(self.picks[before:]), block, self.open)
        return torch.tensor(self.picks)

    def _pick_within(
        self, block: Block, places: Int[np.ndarray, " block"], bar: float, rival: int, floor: float
    ) -> None:
        """Pick from a block until the token outside that may be worth most, at `rival` and worth `bar`, may be next."""
        named, lines = places.tolist(), self.line[places]
        for turn in range(self.count - len(self.picks)):
            here = int(block.values.argmax())
            value, place = block.values.item(here), named[here]
            if value < bar or (value == bar and place > rival) or (turn and value <= floor):
                return
            block.choose(here)
            if not self.take(place):
                block.close((lines == lines[here]).nonzero()[0])


def _leading(values: Float[np.ndarray, " alive"]) -> tuple[Int[np.ndarray, " block"], float, int]:
    """The places of a block of the highest values, ascending, ties the lower first; and the best that is left out."""
    if len(values) <= BLOCK:
        return np.arange(len(values)), -np.inf, len(values)
    bar = -np.partition(-values, BLOCK)[BLOCK]
    among = values > bar
    ties = (values == bar).nonzero()[0]
    room = BLOCK - int(among.sum())
    among[ties[:room]] = True
    return among.nonzero()[0], float(bar), int(ties[room])
