"""Clips through the frozen vision tower once, used in several batches with other drops and questions."""

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.bundled.questions import Facts, facts, things_shown
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import RUNGS, Scene, Window, sample_scenes
from vidsieve.bundled.seeds import rng_of, seed_of
from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.augmentation import kept_tokens, through_codec
from vidsieve.bundled.train.batches import frames_for
from vidsieve.bundled.train.configs import Model
from vidsieve.bundled.train.lines import Lines, training_lines
from vidsieve.bundled.train.packed import frame_of
from vidsieve.bundled.train.stages import Position, Sort, Stage
from vidsieve.bundled.train.vision import video_features

CHUNK = 4
"""Clips that are drawn and encoded together."""
FIRST_CHUNKS, MOST_CHUNKS = 10, 40
REUSES = 4
"""Batches that a clip is used in, on average."""
CODEC_SHARE = 0.4
TEXT_TOKENS = 200
"""About as many ids as a clip's lines have."""
MOST_CLIPS = 32
LEG_TOKENS = 3
"""Visual tokens of a leg of the disc that must be left before its direction is asked."""
NOTHING, SIGN, DISC, FLASH = range(4)
"""Roles of what a visual token shows."""


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """Visual tokens of a clip, what each shows (`things_shown`, its role, the disc's direction), and its facts.

    `places` are the cells of its window.
    """

    tokens: Float[Tensor, "groups cells dim"]
    shown: Int[Tensor, "groups cells"]
    role: Int[Tensor, "groups cells"]
    direction: Int[Tensor, " groups"]
    places: Int[Tensor, " places"]
    facts: Facts


@dataclass(frozen=True, eq=False)
class LongBatch:
    """Kept tokens of each clip in order, their flat indices and labels, and the lines asked."""

    sort: Sort
    tokens: Float[Tensor, "batch kept dim"]
    index: Int[Tensor, "batch kept"]
    shown: Int[Tensor, "batch kept"]
    role: Int[Tensor, "batch kept"]
    group: Int[Tensor, "batch kept"]
    direction: Int[Tensor, "batch kept"]
    lines: Lines
    after_time: bool
    guided: bool


@torch.no_grad()
def encode(
    model: Model, scene: Scene, frames: Tensor, places: Int[Tensor, " places"], rng: torch.Generator | None
) -> list[EncodedClip]:
    """The clips of a scene with their labels."""
    features = video_features(model, frames_for(model, frames, rng))
    shown = things_shown(scene)
    flashes, signs = scene.flashes.cell.shape[1], scene.signs.cell.shape[1]
    role = torch.where(shown > flashes + signs, DISC, torch.where(shown > flashes, SIGN, FLASH))
    role = torch.where(shown == 0, NOTHING, role)
    leg = (torch.arange(scene.groups) >= scene.turn[:, None]).long() * (scene.disc_direction.shape[1] - 1)
    direction = scene.disc_direction.gather(1, leg)
    return [
        EncodedClip(features[clip].clone(), shown[clip], role[clip], direction[clip], places, told)
        for clip, told in enumerate(facts(scene))
    ]


class ClipPool:
    """Makes the batch of every step from the newest clips of a sort; the same seed and position give the same batch."""

    def __init__(self, model: Model, shape: ModelShape, stages: Sequence[Stage], seed: int) -> None:
        self.model, self.shape, self.stages, self.seed = model, shape, stages, seed
        self._chunks: OrderedDict[tuple[int, Sort, int], list[EncodedClip]] = OrderedDict()

    def batch(self, position: Position) -> LongBatch:
        """The batch at a position of the curriculum; counts the clips it uses there."""
        stage = self.stages[position.stage]
        rng = rng_of("batch", self.seed, position.stage, position.step)
        draw = torch.rand(4, generator=rng).tolist()
        sort = stage.main
        if draw[0] < stage.other_share and stage.others:
            sort = stage.others[int(draw[0] / stage.other_share * len(stage.others))]
        ratio = 1.0
        if draw[1] < stage.drop:
            ratio = stage.fewest + 0.55 * draw[2] ** 1.7
        count = max(2, min(MOST_CLIPS, int(stage.tokens / (ratio * sort.tokens + TEXT_TOKENS))))
        clips = self._draw(position, sort, count, rng)
        return self._assemble(clips, sort, ratio, draw[3] < 0.5, rng, position)

    def _draw(self, position: Position, sort: Sort, count: int, rng: torch.Generator) -> list[EncodedClip]:
        name = f"{sort.groups}x{sort.cells}"
        drawn = position.drawn.get(name, 0)
        newest = FIRST_CHUNKS + drawn // (CHUNK * REUSES)
        oldest = max(0, newest - MOST_CHUNKS)
        chosen = torch.randperm((newest - oldest) * CHUNK, generator=rng)[:count].tolist()
        position.drawn[name] = drawn + count
        return [self._chunk(position.stage, sort, oldest + at // CHUNK)[at % CHUNK] for at in chosen]

    def _chunk(self, stage: int, sort: Sort, number: int) -> list[EncodedClip]:
        key = (stage, sort, number)
        if key not in self._chunks:
            self._chunks[key] = self._make(self.stages[stage], sort, rng_of("clips", self.seed, *key))
            if len(self._chunks) > 2 * MOST_CHUNKS:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(key)
        return self._chunks[key]

    def _make(self, stage: Stage, sort: Sort, rng: torch.Generator) -> list[EncodedClip]:
        names = [rung for rung in RUNGS if rung in stage.rungs]
        rung = names[int(torch.multinomial(torch.tensor([stage.rungs[name] for name in names]), 1, generator=rng))]
        spare = self.shape.cells - sort.cells + 1
        row, column = torch.randint(spare, (2,), generator=rng).tolist()
        window = Window(row, column, sort.cells)
        crowded = torch.rand(1, generator=rng).item() < 0.5
        flashes = (2, stage.flashes) if crowded else self.shape.flashes
        scene = sample_scenes(self.shape, rung, CHUNK, rng, groups=sort.groups, flashes=flashes, window=window)
        frames = render(scene, rng)
        if torch.rand(1, generator=rng).item() < CODEC_SHARE:
            frames = through_codec(frames, rng)
        return encode(self.model, scene, frames, window.inside(self.shape.cells), rng)

    def _assemble(
        self,
        clips: Sequence[EncodedClip],
        sort: Sort,
        ratio: float,
        after_time: bool,
        rng: torch.Generator,
        position: Position,
    ) -> LongBatch:
        """Drop tokens by a pattern that looks at no content, and ask about what is left."""
        places = torch.stack([clip.places for clip in clips])
        whole = torch.arange(sort.groups)[None, :, None] * self.shape.places + places[:, None]
        index = whole.flatten(1)
        if ratio < 1:
            index = index.gather(1, kept_tokens(len(clips), sort.groups, sort.cells**2, rng, ratio=ratio))
        group = index // self.shape.places
        rows = list(zip(clips, index, strict=True))
        role = torch.stack([clip.role.flatten()[kept] for clip, kept in rows])
        seen = [_things_left(clip, kept) for clip, kept in rows]
        choice = random.Random(seed_of("lines", self.seed, position.stage, position.step))
        after = frame_of(self.model).after
        return LongBatch(
            sort=sort,
            tokens=torch.stack([clip.tokens.flatten(0, 1)[kept] for clip, kept in rows]),
            index=index,
            shown=torch.stack([clip.shown.flatten()[kept] for clip, kept in rows]),
            role=role,
            group=group,
            direction=torch.stack([clip.direction for clip in clips]).gather(1, group),
            lines=training_lines(self.shape, [clip.facts for clip in clips], after, choice, seen=seen),
            after_time=after_time,
            guided=self.stages[position.stage].guided,
        )


def _things_left(clip: EncodedClip, kept: Int[Tensor, " kept"]) -> frozenset[int]:
    """Numbers of the things of which tokens are left: one, of a leg of the disc several."""
    counts = torch.bincount(clip.shown.flatten()[kept]).tolist()
    legs = clip.facts.legs
    return frozenset(number for number, count in enumerate(counts) if count >= (LEG_TOKENS if number in legs else 1))
