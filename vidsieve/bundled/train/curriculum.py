"""What a training batch looks like at each point of stage 2: short clips first, crowded ones against shortcuts."""

from dataclasses import dataclass

import torch

from vidsieve.bundled.scene import Rung

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
