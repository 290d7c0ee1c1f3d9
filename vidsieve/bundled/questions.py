"""From a scene to the questions that can be asked of it, with their answers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.bundled.scene import Objects, Scene
from vidsieve.bundled.shapes import CELL, FRAMES_PER_GROUP
from vidsieve.bundled.words import COLORS, DIRECTIONS, LONG_SHAPES, MOMENTS, QUADRANTS, QUESTIONS


@dataclass(frozen=True)
class Thing:
    """A flash or a sign in words. `group`: the frame group it is first seen in. `number`: its own in `things_shown`."""

    color: str
    shape: str
    quadrant: str
    group: int
    number: int


@dataclass(frozen=True)
class Facts:
    """What happens in one clip, in words. `flashes` in order of time; a direction for each leg of the disc.

    `legs` are the numbers of the disc's legs in `things_shown`.
    """

    flashes: tuple[Thing, ...]
    signs: tuple[Thing, ...]
    disc_color: str
    directions: tuple[str, ...]
    legs: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A question of one kind with its one-word answer. `about`: numbers of the things that it can be read from."""

    kind: str
    question: str
    answer: str
    about: tuple[int, ...] = ()


def facts(scene: Scene) -> list[Facts]:
    """The facts of every clip in the batch."""
    flash_slots, sign_slots = scene.flashes.cell.shape[1], scene.signs.cell.shape[1]
    flashes = _things(scene.flashes, scene.cells, 1)
    signs = _things(scene.signs, scene.cells, 1 + flash_slots)
    legs = tuple(1 + flash_slots + sign_slots + leg for leg in range(scene.disc_direction.shape[1]))
    rows = zip(flashes, signs, scene.disc_color.tolist(), scene.disc_direction.tolist(), strict=True)
    return [
        Facts(
            tuple(sorted(seen, key=lambda thing: thing.group)),
            tuple(stay),
            COLORS[color],
            tuple(DIRECTIONS[direction] for direction in directions),
            legs,
        )
        for seen, stay, color, directions in rows
    ]


def _things(objects: Objects, cells: int, first_number: int) -> list[list[Thing]]:
    """The objects that are present, clip by clip."""
    fields: Sequence[Tensor] = (objects.present, objects.color, objects.shape, objects.cell, objects.first)
    rows = zip(*(field.tolist() for field in fields), strict=True)
    return [
        [
            Thing(COLORS[color], LONG_SHAPES[shape], quadrant(cell, cells), group, first_number + slot)
            for slot, (here, color, shape, cell, group) in enumerate(zip(*row, strict=True))
            if here
        ]
        for row in rows
    ]


def things_shown(scene: Scene) -> Int[Tensor, "videos groups cells"]:
    """The number of the topmost thing in each cell of each frame group: 0 nothing, flashes, signs, legs of the disc."""
    videos, groups = scene.setting.shape
    shown = torch.zeros(videos, groups, scene.cells**2, dtype=torch.long)
    flash_slots, sign_slots = scene.flashes.cell.shape[1], scene.signs.cell.shape[1]
    _mark(shown, scene.signs, 1 + flash_slots)
    middle = (scene.disc_path + scene.camera).unflatten(1, (groups, FRAMES_PER_GROUP)).mean(2)
    row, column = (middle / CELL).long().clamp(0, scene.cells - 1).unbind(-1)
    legs = scene.disc_direction.shape[1]
    leg = (torch.arange(groups) >= scene.turn[:, None]).long() if legs == 2 else torch.zeros(videos, groups).long()
    disc = 1 + flash_slots + sign_slots + leg
    shown.scatter_(2, (row * scene.cells + column)[..., None], disc[..., None])
    _mark(shown, scene.flashes, 1)
    return shown


def _mark(shown: Int[Tensor, "videos groups cells"], objects: Objects, first_number: int) -> None:
    group = torch.arange(shown.shape[1])
    seen = (group >= objects.first[..., None]) & (group <= objects.last[..., None]) & objects.present[..., None]
    video, item, when = seen.nonzero(as_tuple=True)
    shown[video, when, objects.cell[video, item]] = item + first_number


def quadrant(cell: int, cells: int) -> str:
    """The quarter of a picture of `cells` x `cells` that a cell (row-major index) lies in."""
    row, column = divmod(cell, cells)
    return QUADRANTS[2 * (row >= cells // 2) + (column >= cells // 2)]


def one_of_each(clip: Facts, rng: random.Random, kinds: Sequence[str]) -> list[Question]:
    """One question of every kind: what an evaluation asks of a clip. Yes and no are equally likely."""
    pools: dict[str, list[Question]] = {kind: [] for kind in kinds}
    for asked in every_question(clip):
        if asked.kind in pools:
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


def every_question(clip: Facts) -> Iterator[Question]:
    """All questions that have one right answer in this clip; a model is asked those of its kinds."""
    flashes = clip.flashes
    if len(flashes) == 1 or flashes[0].group < flashes[1].group:
        yield _ask("first_color", flashes[0].color, (flashes[0].number,))
    if len(flashes) == 1 or flashes[-2].group < flashes[-1].group:
        yield _ask("last_color", flashes[-1].color, (flashes[-1].number,))
    for kind, direction, leg in zip(_direction_kinds(clip), clip.directions, clip.legs, strict=True):
        yield _ask(kind, direction, (leg,))
    yield _ask("disc_color", clip.disc_color, clip.legs[:1])
    for flash in flashes:
        yield _ask("shape", flash.shape, (flash.number,), color=flash.color)
        yield _ask("where", flash.quadrant, (flash.number,), color=flash.color)
    shown = {flash.color: (flash.number,) for flash in flashes}
    for color in COLORS:
        yield _ask("exist", "yes" if color in shown else "no", shown.get(color, ()), color=color)
    for flash in flashes:
        for other in flashes:
            if flash.group != other.group:
                answer = "yes" if flash.group < other.group else "no"
                yield _ask("order", answer, (flash.number, other.number), color=flash.color, other=other.color)
    for sign in clip.signs:
        yield _ask("sign_where", sign.quadrant, (sign.number,), color=sign.color)
        yield _ask("sign_shape", sign.shape, (sign.number,), color=sign.color)


def _direction_kinds(clip: Facts) -> tuple[str, ...]:
    return ("direction",) if len(clip.directions) == 1 else ("first_direction", "last_direction")


def captions(clip: Facts) -> list[tuple[str, int]]:
    """Statements for training only: a thing's colour, then what follows from it; with the thing's number."""
    named = [("flash", flash) for flash in clip.flashes] + [("sign", sign) for sign in clip.signs]
    return [
        (f"{role} {thing.color} {thing.shape} {thing.quadrant} {MOMENTS[thing.group]}", thing.number)
        for role, thing in named
    ]


def _ask(kind: str, answer: str, about: tuple[int, ...], **names: str) -> Question:
    return Question(kind, QUESTIONS[kind].format(**names), answer, about)
