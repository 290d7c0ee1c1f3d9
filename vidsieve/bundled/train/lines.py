"""Lines of text with their targets: what the language model is asked about a batch of clips."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.bundled.questions import Facts, Question, captions, every_question
from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.words import TOKEN_ID, token_ids

LENGTH = 10
"""Ids a line can hold; the longest question with the turn around it."""
CAPTIONS = 4
SLOTS = {"shape": 2, "where": 2, "order": 2, "exist": 2, "sign_where": 2}
"""Most questions of a kind that a clip is asked in training; other kinds once."""
LONG_SLOTS = {"shape": 2, "where": 2, "order": 6, "exist": 2}
"""The same for clips of many frame groups, where time order is what is learnt last."""

ANSWER_WEIGHT, END_WEIGHT, CAPTION_WEIGHT = 1.0, 0.05, 0.5


@dataclass(frozen=True, eq=False)
class Lines:
    """Input ids, target ids (−100 where nothing is asked), loss weights, and the kind of each line.

    A kind is −1 where a line is unused, else its place in `names`, where captions come last.
    `about`: numbers of the things that the answer is read from (0: none).
    """

    ids: Int[Tensor, "batch lines length"]
    targets: Int[Tensor, "batch lines length"]
    weights: Float[Tensor, "batch lines length"]
    kinds: Int[Tensor, "batch lines"]
    about: Int[Tensor, "batch lines 2"]
    names: tuple[str, ...]

    @property
    def first_asked(self) -> Int[Tensor, "batch lines"]:
        """The place in each line whose next word is the first that is asked."""
        return (self.targets >= 0).long().argmax(-1)


def question_ids(after: Sequence[int], question: str) -> list[int]:
    """The prompt from the end of the video to where the answer begins."""
    return [*after, *token_ids(f"{question} <|assistant|>")]


def training_lines(
    shape: ModelShape,
    clips: Sequence[Facts],
    after: Sequence[int],
    rng: random.Random,
    *,
    seen: Sequence[frozenset[int]] | None = None,
) -> Lines:
    """A mix of questions of every kind, and captions, for each clip.

    `seen` holds the numbers of the things of each clip of which enough tokens are left; what was removed is not asked.
    """
    slots = SLOTS if shape.legs == 1 else LONG_SLOTS
    rows = [
        _pick(clip, shape.kinds, slots, after, rng, None if seen is None else seen[number])
        for number, clip in enumerate(clips)
    ]
    most = sum(slots.get(kind, 1) for kind in shape.kinds) + CAPTIONS
    return _tensors(rows, most if seen is None else max(1, *map(len, rows)), shape.kinds)


def evaluation_lines(shape: ModelShape, asked: Sequence[Sequence[Question]], after: Sequence[int]) -> Lines:
    """Exactly the questions given."""
    rows = [[_question_row(one, after) for one in clip] for clip in asked]
    return _tensors(rows, max(map(len, rows)), shape.kinds)


Row = tuple[str, list[int], list[int], list[float], tuple[int, ...]]
CAPTION: Final = "caption"


def _pick(
    clip: Facts,
    kinds: Sequence[str],
    slots: Mapping[str, int],
    after: Sequence[int],
    rng: random.Random,
    seen: frozenset[int] | None,
) -> list[Row]:
    pools: dict[str, list[Question]] = {kind: [] for kind in kinds}
    for asked in every_question(clip):
        if asked.kind in pools and (seen is None or seen.issuperset(asked.about)):
            pools[asked.kind].append(asked)
    rows = []
    for kind, pool in pools.items():
        rng.shuffle(pool)
        if kind in ("exist", "order"):
            pool = _as_many_of_each(pool, slots[kind])
        rows += [_question_row(one, after) for one in pool[: slots.get(kind, 1)]]
    told = [(text, number) for text, number in captions(clip) if seen is None or number in seen]
    rng.shuffle(told)
    return rows + [_caption_row(text, number, after) for text, number in told[:CAPTIONS]]


def _as_many_of_each(pool: Sequence[Question], most: int) -> list[Question]:
    """As many questions that are answered yes as no, where there are enough."""
    answers = dict.fromkeys(one.answer for one in reversed(pool))
    of_each = [[one for one in pool if one.answer == answer][: most // 2] for answer in answers]
    return [one for some in of_each for one in some]


def _question_row(asked: Question, after: Sequence[int]) -> Row:
    ids = [*question_ids(after, asked.question), TOKEN_ID[asked.answer]]
    quiet = len(ids) - 2
    targets = [-100] * quiet + [TOKEN_ID[asked.answer], TOKEN_ID["<|end|>"]]
    return asked.kind, ids, targets, [0.0] * quiet + [ANSWER_WEIGHT, END_WEIGHT], asked.about


def _caption_row(text: str, number: int, after: Sequence[int]) -> Row:
    words = token_ids(text)
    ids, quiet = [*after, *words[:-1]], len(after) + 1
    targets = [-100] * quiet + words[2:]
    return CAPTION, ids, targets, [0.0] * quiet + [CAPTION_WEIGHT] * (len(ids) - quiet), (number,)


def _tensors(clips: Sequence[Sequence[Row]], lines: int, names: Sequence[str]) -> Lines:
    batch = len(clips)
    ids = torch.full((batch, lines, LENGTH), TOKEN_ID["<|endoftext|>"])
    targets = torch.full((batch, lines, LENGTH), -100)
    weights = torch.zeros(batch, lines, LENGTH)
    about = torch.zeros(batch, lines, 2, dtype=torch.long)
    kinds = torch.full((batch, lines), -1)
    number = {kind: place for place, kind in enumerate((*names, CAPTION))}
    for clip, rows in enumerate(clips):
        for line, (kind, row, target, weight, things) in enumerate(rows):
            kinds[clip, line] = number[kind]
            about[clip, line, : len(things)] = torch.tensor(things, dtype=torch.long)
            ids[clip, line, : len(row)] = torch.tensor(row)
            targets[clip, line, : len(row)] = torch.tensor(target)
            weights[clip, line, : len(row)] = torch.tensor(weight)
    return Lines(ids, targets, weights, kinds, about, (*names, CAPTION))
