"""Stage 2 batches: clips through the frozen vision tower, and the lines asked about them.

A recipe says what a batch looks like at each point of the stage: short clips first, crowded ones against shortcuts.
"""

import queue
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vidsieve.bundled.questions import facts
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import Rung, sample_scenes
from vidsieve.bundled.seeds import rng_of, seed_of
from vidsieve.bundled.shapes import FRAMES_PER_GROUP, ModelShape
from vidsieve.bundled.train.augmentation import kept_tokens, through_codec
from vidsieve.bundled.train.configs import Model
from vidsieve.bundled.train.lines import Lines, training_lines
from vidsieve.bundled.train.packed import frame_of
from vidsieve.bundled.train.vision import video_features

MAX_GROUPS = 8
GROUPS = ((0.10, 2), (0.18, 3), (0.26, 4), (0.36, 6), (1.01, MAX_GROUPS))
"""Until this share of the steps, clips have at most so many frame groups."""
SHORTER_SHARE = 0.2
CROWDED = {2: 6, 3: 6, 4: 5, 6: 5, 8: 6}
"""Frame groups → most flashes in a clip. With few, "name any flash" would be right too often to be unlearnt."""
STATIC_UNTIL = 0.12
RUNG_SHARES: tuple[tuple[Rung, float], ...] = (("static", 0.45), ("jitter", 0.30), ("cuts", 0.25))
DROP_FROM, DROP_SHARE = 0.30, 0.3
CODEC_SHARE = 0.25
VIDEOS_PER_BATCH = 12
"""At full length; shorter clips come in larger batches, so that a step costs about the same."""


@dataclass(frozen=True)
class Recipe:
    """One batch: how many clips, how long, which rung, how many flashes, and what is done to them."""

    videos: int
    groups: int
    rung: Rung
    flashes: tuple[int, int]
    drop: bool
    codec: bool


def recipe_at(progress: float, rng: torch.Generator) -> Recipe:
    """The recipe for a step at `progress` in [0, 1)."""
    draw = torch.rand(6, generator=rng).tolist()
    longest = next(groups for until, groups in GROUPS if progress < until)
    lengths = [groups for _, groups in GROUPS if groups <= longest]
    groups = lengths[int(draw[0] / SHORTER_SHARE * len(lengths))] if draw[0] < SHORTER_SHARE else longest
    crowded = groups < MAX_GROUPS or draw[1] < 0.25 * (1 - progress)
    return Recipe(
        videos=min(24, VIDEOS_PER_BATCH * MAX_GROUPS // groups),
        groups=groups,
        rung=_rung(draw[2]) if progress >= STATIC_UNTIL else "static",
        flashes=(2, CROWDED[groups]) if crowded else (2, 3),
        drop=progress >= DROP_FROM and draw[3] < DROP_SHARE,
        codec=draw[4] < CODEC_SHARE,
    )


def _rung(draw: float) -> Rung:
    for rung, share in RUNG_SHARES:
        draw -= share
        if draw < 0:
            return rung
    return RUNG_SHARES[-1][0]


AHEAD = 3
"""Batches prepared while the language model trains."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Visual tokens of each clip, which of the clip's tokens they are, and the lines asked."""

    tokens: Float[Tensor, "batch kept dim"]
    index: Int[Tensor, "batch kept"]
    lines: Lines
    recipe: Recipe


def frames_for(
    model: Model, frames: UInt8[Tensor, "videos frames 3 height width"], rng: torch.Generator | None = None
) -> UInt8[Tensor, "videos seen 3 height width"]:
    """The frames a family encodes: Qwen2-VL all of them, LLaVA-OneVision one a group (the first without `rng`)."""
    if model.config.model_type == "qwen2_vl":
        return frames
    pairs = frames.unflatten(1, (-1, FRAMES_PER_GROUP))
    if rng is None:
        return pairs[:, :, 0]
    videos, groups = pairs.shape[:2]
    which = torch.randint(FRAMES_PER_GROUP, (videos, groups), generator=rng)
    return pairs[torch.arange(videos)[:, None], torch.arange(groups), which]


@torch.no_grad()
def make_batch(model: Model, shape: ModelShape, seed: int, step: int, steps: int) -> Batch:
    """Batch number `step` of `steps`; the same arguments and vision weights give the same batch."""
    rng = rng_of("language", seed, step)
    recipe = recipe_at(step / steps, rng)
    scene = sample_scenes(shape, recipe.rung, recipe.videos, rng, groups=recipe.groups, flashes=recipe.flashes)
    frames = render(scene, rng)
    if recipe.codec:
        frames = through_codec(frames, rng)
    features = video_features(model, frames_for(model, frames, rng))
    videos, groups, places, dim = features.shape
    tokens = features.flatten(1, 2)
    index = torch.arange(groups * places).expand(videos, -1)
    if recipe.drop:
        index = kept_tokens(videos, groups, places, rng)
        tokens = tokens.gather(1, index[..., None].expand(-1, -1, dim))
    choice = random.Random(seed_of("lines", seed, step))
    return Batch(tokens, index, training_lines(shape, facts(scene), frame_of(model).after, choice), recipe)


def batches(model: Model, shape: ModelShape, seed: int, start: int, steps: int) -> Iterator[tuple[int, Batch]]:
    """Batches from `start` on, made ahead in a thread: torch lets go of the interpreter while it computes."""
    ready: queue.Queue[tuple[int, Batch | BaseException]] = queue.Queue(maxsize=AHEAD)

    def work() -> None:
        for step in range(start, steps):
            try:
                ready.put((step, make_batch(model, shape, seed, step, steps)))
            except BaseException as fault:
                ready.put((step, fault))
                return

    threading.Thread(target=work, daemon=True).start()
    for _ in range(start, steps):
        step, batch = ready.get()
        if isinstance(batch, BaseException):
            raise batch
        yield step, batch
