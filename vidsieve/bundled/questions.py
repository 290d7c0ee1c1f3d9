"""From a scene to the questions that can be asked of it, with their answers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from vidsieve.bundled.scene import CELLS, Objects, Scene
from vidsieve.bundled.words import COLORS, DIRECTIONS, KINDS, MOMENTS, QUADRANTS, QUESTIONS, SHAPES


@dataclass(frozen=True)
class Thing:
    """A flash or a sign in words; `group` is the frame group it is first seen in."""

    color: str
    shape: str
    quadrant: str
    group: int


@dataclass(frozen=True)
class Facts:
    """What happens in one clip, in words. `flashes` in order of time."""

    flashes: tuple[Thing, ...]
    signs: tuple[Thing, ...]
    disc_color: str
    direction: str


@dataclass(frozen=True)
class Asked:
    """A question of one kind with its one-word answer."""

    kind: str
    question: str
    answer: str


def facts(scene: Scene) -> list[Facts]:
    """The facts of every clip in the batch."""
    colors, directions = scene.disc_color.tolist(), scene.disc_direction.tolist()
    flashes, signs = _things(scene.flashes), _things(scene.signs)
    return [
        Facts(tuple(sorted(seen, key=lambda thing: thing.group)), tuple(stay), COLORS[color], DIRECTIONS[to])
        for seen, stay, color, to in zip(flashes, signs, colors, directions, strict=True)
    ]


def _things(objects: Objects) -> list[list[Thing]]:
    """The objects that are present, clip by clip."""
    fields: Sequence[Tensor] = (objects.present, objects.color, objects.shape, objects.cell, objects.first)
    rows = zip(*(field.tolist() for field in fields), strict=True)
    return [
        [
            Thing(COLORS[color], SHAPES[shape], quadrant(cell), group)
            for here, color, shape, cell, group in zip(*row, strict=True)
            if here
        ]
        for row in rows
    ]


def quadrant(cell: int) -> str:
    """The quarter of the picture that a cell (row-major index) lies in."""
    row, column = divmod(cell, CELLS)
    return QUADRANTS[2 * (row >= CELLS // 2) + (column >= CELLS // 2)]


def one_of_each(clip: Facts, rng: random.Random) -> list[Asked]:
    """One question of every kind: what an evaluation asks of a clip. Yes and no are equally likely."""
    pools: dict[str, list[Asked]] = {kind: [] for kind in KINDS}
    for asked in every_question(clip):
        pools[asked.kind].append(asked)
    chosen = []
    for pool in pools.values():
        answers = sorted({asked.answer for asked in pool})
        if answers == ["no", "yes"]:
            answer = rng.choice(answers)
            pool = [asked for asked in pool if asked.answer == answer]
        if pool:
            chosen.append(rng.choice(pool))
    return chosen


def every_question(clip: Facts) -> Iterator[Asked]:
    """All questions that have one right answer in this clip."""
    flashes, signs = clip.flashes, clip.signs
    if len(flashes) == 1 or flashes[0].group < flashes[1].group:
        yield _ask("first_color", flashes[0].color)
    if len(flashes) == 1 or flashes[-2].group < flashes[-1].group:
        yield _ask("last_color", flashes[-1].color)
    yield _ask("direction", clip.direction)
    yield _ask("disc_color", clip.disc_color)
    for flash in flashes:
        yield _ask("shape", flash.shape, color=flash.color)
        yield _ask("where", flash.quadrant, color=flash.color)
    shown = {flash.color for flash in flashes}
    for color in COLORS:
        yield _ask("exist", "yes" if color in shown else "no", color=color)
    for flash in flashes:
        for other in flashes:
            if flash.group != other.group:
                answer = "yes" if flash.group < other.group else "no"
                yield _ask("order", answer, color=flash.color, other=other.color)
    for sign in signs:
        yield _ask("sign_where", sign.quadrant, color=sign.color)


def captions(clip: Facts) -> list[str]:
    """Statements for training only: a thing's colour, then what follows from it."""
    flashes = [f"flash {flash.color} {flash.shape} {flash.quadrant} {MOMENTS[flash.group]}" for flash in clip.flashes]
    return flashes + [f"sign {sign.color} {sign.shape} {sign.quadrant} {MOMENTS[sign.group]}" for sign in clip.signs]


def _ask(kind: str, answer: str, **names: str) -> Asked:
    return Asked(kind, QUESTIONS[kind].format(**names), answer)
