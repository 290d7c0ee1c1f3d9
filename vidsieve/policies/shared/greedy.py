"""Choosing a set one token at a time: who may still be picked, and how alike tokens are.

Every pick depends on those before it, so the choice is a loop over picks. Nothing in it is read back from the device:
picks stay tensors with one entry, since indexing with a scalar tensor would wait for its value.

On the CPU `LazyChoice` makes the same picks: few tokens are looked at for a pick, and all of them once a block. What a
token is worth only falls as others are chosen, so what it was worth before is a bound (Minoux, "Accelerated greedy
algorithms", 1978). A block holds the tokens worth most. Picks go on among them until one outside may be worth more;
then all that was picked is told to all tokens at once, in products of matrices instead of a row a pick. numpy runs the
picks, as a call of it on a few numbers costs a third of one of torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.framework.records import VideoTokens
from vidsieve.policies.shared.counting import budget_lines

WHOLE = 16_384
"""Up to this many tokens (1 GiB of float32) all similarities are made at once; above it, a row a pick."""


def on_cpu(values: Tensor) -> bool:
    """Whether reading a value costs nothing, so that work may depend on what was found."""
    return values.is_cpu


@dataclass(frozen=True, eq=False)
class Field:
    """The living tokens of a video: flat `index`, the budget `line` of each, `room` in each line, `count` in all."""

    index: Int[Tensor, " alive"]
    line: Int[Tensor, " alive"]
    room: Int[Tensor, " lines"]
    count: int

    def of(self, values: Float[Tensor, "frames tokens ..."]) -> Float[Tensor, "alive ..."]:
        """Entries of the living tokens, in float32."""
        return values.flatten(0, 1).index_select(0, self.index).float()

    def mask(self, picks: Int[Tensor, " picks"], like: Bool[Tensor, "frames tokens"]) -> Bool[Tensor, "frames tokens"]:
        """The picks as a mask over all tokens."""
        return torch.zeros_like(like.flatten()).index_fill_(0, self.index[picks], True).view_as(like)


def field_of(tokens: VideoTokens, keep_ratio: float | None, where: str) -> Field:
    """Who can be picked, and how many of each budget line; without a Budget the video is one line."""
    lines, counts = budget_lines(tokens, keep_ratio, where)
    index = tokens.keep.flatten().nonzero().squeeze(1)
    line = lines[index // tokens.keep.shape[1]]
    offered = torch.zeros_like(counts).scatter_add_(0, line, torch.ones_like(line))
    room = torch.minimum(counts, offered)
    return Field(index, line, room, int(room.sum()))


class Alike:
    """Cosine similarity of living tokens, in float32, times `sign`."""

    def __init__(self, features: Float[Tensor, "alive dim"], sign: float = 1.0) -> None:
        self.unit, self.sign = normalize(features.float(), dim=-1), sign
        self._all = (sign * self.unit) @ self.unit.T if len(features) <= WHOLE else None

    def row(self, pick: Int[Tensor, "1"]) -> Float[Tensor, " alive"]:
        """Similarity of every token to one of them."""
        if self._all is not None:
            return self._all.index_select(0, pick).squeeze(0)
        return self.unit @ (self.sign * self.unit.index_select(0, pick).squeeze(0))

    def nearest(self) -> Float[Tensor, " alive"]:
        """The entry of each token and the other one most like it; an infinite distance for a token that is alone."""
        place = torch.arange(len(self.unit), device=self.unit.device)
        found = []
        for part in place.split(max(1, WHOLE * WHOLE // 4 // max(1, len(place)))):
            block = self.unit[part] @ self.unit.T if self._all is None else self.sign * self._all[part]
            found.append(block.masked_fill(part[:, None] == place, -torch.inf).amax(dim=1))
        return self.sign * torch.cat(found)


def pick(
    field: Field,
    first: Float[Tensor, " alive"],
    after: Callable[[Int[Tensor, "1"], int, Bool[Tensor, " alive"]], Float[Tensor, " alive"]],
) -> Int[Tensor, " picks"]:
    """Place of each pick: again and again the open token with the highest value, ties to the lower index.

    `first` are the values at the start, `after(pick, turn, open)` those once the pick of this turn is made, with those
    that can still be picked. A budget line without room closes.
    """
    values, room, never = first, field.room.clone(), first.new_full((), -torch.inf)
    open_ = room[field.line] > 0
    one = torch.ones(1, dtype=room.dtype, device=room.device)
    picks = torch.empty(field.count, dtype=torch.int64, device=room.device)
    for turn in range(field.count):
        picks[turn : turn + 1] = best = torch.where(open_, values, never).argmax(dim=0, keepdim=True)
        open_.index_fill_(0, best, False)
        if room.numel() > 1:
            room.index_add_(0, field.line.index_select(0, best), one, alpha=-1)
            open_ &= (room > 0).index_select(0, field.line)
        if turn + 1 < field.count:
            values = after(best, turn, open_)
    return picks


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
