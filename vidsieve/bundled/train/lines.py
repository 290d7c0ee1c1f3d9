"""Lines of text with their targets: what the language model is asked about a batch of clips."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.bundled.questions import Asked, Facts, captions, every_question
from vidsieve.bundled.words import KINDS, TOKEN_ID, token_ids

LENGTH = 10
"""Ids a line can hold; the longest question with the turn around it."""
CAPTIONS = 4
SLOTS = {"shape": 2, "where": 2, "order": 2, "exist": 2, "sign_where": 2}
"""Most questions of a kind that a clip is asked in training; other kinds once."""
LINES = sum(SLOTS.get(kind, 1) for kind in KINDS) + CAPTIONS
CAPTION_KIND = len(KINDS)

ANSWER_WEIGHT, END_WEIGHT, CAPTION_WEIGHT = 1.0, 0.05, 0.5


@dataclass(frozen=True, eq=False)
class Lines:
    """Input ids, target ids (−100 where nothing is asked), loss weights, and the kind of each line (−1: unused)."""

    ids: Int[Tensor, "batch lines length"]
    targets: Int[Tensor, "batch lines length"]
    weights: Float[Tensor, "batch lines length"]
    kinds: Int[Tensor, "batch lines"]


def question_ids(after: Sequence[int], question: str) -> list[int]:
    """The prompt from the end of the video to where the answer begins."""
    return [*after, *token_ids(f"{question} <|assistant|>")]


def training_lines(clips: Sequence[Facts], after: Sequence[int], rng: random.Random) -> Lines:
    """A mix of questions of every kind, and captions, for each clip."""
    return _tensors([_pick(clip, after, rng) for clip in clips], LINES)


def evaluation_lines(asked: Sequence[Sequence[Asked]], after: Sequence[int]) -> Lines:
    """Exactly the questions given."""
    rows = [[_question_row(one, after) for one in clip] for clip in asked]
    return _tensors(rows, max(map(len, rows)))


Row = tuple[int, list[int], list[int], list[float]]


def _pick(clip: Facts, after: Sequence[int], rng: random.Random) -> list[Row]:
    pools: dict[str, list[Asked]] = {kind: [] for kind in KINDS}
    for asked in every_question(clip):
        pools[asked.kind].append(asked)
    rows = []
    for kind, pool in pools.items():
        rng.shuffle(pool)
        if kind in ("exist", "order"):  # as many yes as no
            firsts = {one.answer: one for one in reversed(pool)}
            pool = list(firsts.values())
        rows += [_question_row(one, after) for one in pool[: SLOTS.get(kind, 1)]]
    told = captions(clip)
    rng.shuffle(told)
    return rows + [_caption_row(text, after) for text in told[:CAPTIONS]]


def _question_row(asked: Asked, after: Sequence[int]) -> Row:
    ids = [*question_ids(after, asked.question), TOKEN_ID[asked.answer]]
    quiet = len(ids) - 2
    targets = [-100] * quiet + [TOKEN_ID[asked.answer], TOKEN_ID["<|end|>"]]
    return KINDS.index(asked.kind), ids, targets, [0.0] * quiet + [ANSWER_WEIGHT, END_WEIGHT]


def _caption_row(text: str, after: Sequence[int]) -> Row:
    words = token_ids(text)
    ids, quiet = [*after, *words[:-1]], len(after) + 1
    targets = [-100] * quiet + words[2:]
    return CAPTION_KIND, ids, targets, [0.0] * quiet + [CAPTION_WEIGHT] * (len(ids) - quiet)


def _tensors(clips: Sequence[Sequence[Row]], lines: int) -> Lines:
    batch = len(clips)
    ids = torch.full((batch, lines, LENGTH), TOKEN_ID["<|endoftext|>"])
    targets = torch.full((batch, lines, LENGTH), -100)
    weights = torch.zeros(batch, lines, LENGTH)
    kinds = torch.full((batch, lines), -1)
    for clip, rows in enumerate(clips):
        for line, (kind, row, target, weight) in enumerate(rows):
            kinds[clip, line] = kind
            ids[clip, line, : len(row)] = torch.tensor(row)
            targets[clip, line, : len(row)] = torch.tensor(target)
            weights[clip, line, : len(row)] = torch.tensor(weight)
    return Lines(ids, targets, weights, kinds)
