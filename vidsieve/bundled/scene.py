"""What happens in a synthetic clip: a batch of scenes drawn at random, before any pixel is painted.

A clip shows a textured background, *signs* (objects that stay), one *disc* (moves all clip long) and *flashes*
(objects that are there for one frame group of two frames only). Three rungs of difficulty:

- `static`: the camera stands still; signs are squares, flashes never are, and no flash falls on a sign.
- `jitter`: the camera shakes; signs and flashes share their shapes, and a flash may fall on a sign.
- `cuts`: as jitter, and once or twice the scene is cut to another background with other signs.

An event is a change, so no flash lies in the first frame group.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.bundled.words import COLORS, DIRECTIONS, SHAPES

Rung = Literal["static", "jitter", "cuts"]
RUNGS: tuple[Rung, ...] = get_args(Rung)

SIDE = 96
"""Height and width of a clip in pixels."""
CELL = 16
"""Side in pixels of the image region that becomes one visual token."""
CELLS = SIDE // CELL
FRAMES_PER_GROUP = 2
MAX_SCENES = 3
SHAKE = 3
"""Largest camera shift in pixels, each way."""
SQUARE = SHAPES.index("square")


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one role (signs or flashes). `first` and `last` are the frame groups they are seen in, inclusive."""

    cell: Int[Tensor, "videos objects"]
    color: Int[Tensor, "videos objects"]
    shape: Int[Tensor, "videos objects"]
    offset: Int[Tensor, "videos objects 2"]
    first: Int[Tensor, "videos objects"]
    last: Int[Tensor, "videos objects"]
    present: Bool[Tensor, "videos objects"]


@dataclass(frozen=True, eq=False)
class Scene:
    """A batch of clips. Pixel offsets are (down, right); `disc_path` holds the disc's centre in each frame."""

    signs: Objects
    flashes: Objects
    disc_color: Int[Tensor, " videos"]
    disc_direction: Int[Tensor, " videos"]
    disc_path: Float[Tensor, "videos frames 2"]
    camera: Int[Tensor, "videos frames 2"]
    setting: Int[Tensor, "videos groups"]

    @property
    def groups(self) -> int:
        """Frame groups in each clip."""
        return self.setting.shape[1]


def sample_scenes(
    rung: Rung,
    videos: int,
    rng: torch.Generator,
    *,
    groups: int = 8,
    flashes: tuple[int, int] = (2, 3),
) -> Scene:
    """Draw `videos` clips of `groups` frame groups with between `flashes` events each."""
    setting = _settings(rung, videos, groups, rng)
    cells = torch.rand(videos, CELLS * CELLS, generator=rng).argsort(1)
    signs = _signs(rung, setting, cells[:, : 2 * MAX_SCENES], rng)
    events = _flashes(rung, signs, cells[:, 2 * MAX_SCENES :], groups, flashes, rng)
    direction = torch.randint(len(DIRECTIONS), (videos,), generator=rng)
    frames = groups * FRAMES_PER_GROUP
    return Scene(
        signs=signs,
        flashes=events,
        disc_color=torch.randint(len(COLORS), (videos,), generator=rng),
        disc_direction=direction,
        disc_path=_disc_path(direction, frames, rng),
        camera=_camera(rung, videos, frames, rng),
        setting=setting,
    )


def _settings(rung: Rung, videos: int, groups: int, rng: torch.Generator) -> Int[Tensor, "videos groups"]:
    """Which background each frame group shows: 0 throughout, or counting up at each cut.

    A scene lasts two groups at least: in a shorter one a sign could not be told from a flash.
    """
    most = min(MAX_SCENES, groups // 2) - 1
    if rung != "cuts" or most < 1:
        return torch.zeros(videos, groups, dtype=torch.long)
    cuts = torch.randint(1, most + 1, (videos, 1), generator=rng)
    number = torch.arange(most)
    spare = groups - 2 * (cuts + 1)
    later = ((spare + 1) * torch.rand(videos, most, generator=rng)).long().sort(dim=1).values
    cut_at = torch.where(number < cuts, later + 2 * (number + 1), groups)
    return (torch.arange(groups)[None, :, None] >= cut_at[:, None, :]).sum(-1)


def _signs(
    rung: Rung, setting: Int[Tensor, "videos groups"], cells: Int[Tensor, "videos objects"], rng: torch.Generator
) -> Objects:
    """Two possible signs in each of the scenes; the first is always there. Colours differ within a clip."""
    videos, count = cells.shape
    home = torch.arange(count) // 2
    shown = setting[:, None, :] == home[None, :, None]
    first = shown.long().argmax(-1)
    second = torch.rand(videos, count, generator=rng) < 0.6
    present = shown.any(-1) & (second | (torch.arange(count) % 2 == 0))
    shape = torch.full((videos, count), SQUARE)
    if rung != "static":
        alike = torch.rand(videos, count, generator=rng) < 0.5
        shape = torch.where(alike, torch.randint(len(SHAPES), (videos, count), generator=rng), shape)
    return Objects(
        cell=cells,
        color=torch.rand(videos, len(COLORS), generator=rng).argsort(1)[:, :count],
        shape=shape,
        offset=_offsets((videos, count), rng),
        first=first,
        last=first + shown.sum(-1) - 1,
        present=present,
    )


def _flashes(
    rung: Rung,
    signs: Objects,
    cells: Int[Tensor, "videos cells"],
    groups: int,
    flashes: tuple[int, int],
    rng: torch.Generator,
) -> Objects:
    """Events with distinct colours; each in a frame group of its own where there are groups enough."""
    low, high = flashes
    videos = cells.shape[0]
    cell = cells[:, :high]
    shape = torch.randint(len(SHAPES) - 1, (videos, high), generator=rng)
    group = 1 + torch.rand(videos, groups - 1, generator=rng).argsort(1)
    group = group.repeat(1, -(-high // (groups - 1)))[:, :high]
    if rung != "static":
        square = torch.rand(videos, high, generator=rng) < 0.2
        shape = torch.where(square, SQUARE, shape)
        on_sign = torch.rand(videos, high, generator=rng) < 0.2
        under = signs.cell[:, torch.arange(high) % signs.cell.shape[1]]
        cell = torch.where(on_sign, under, cell)
    count = torch.randint(low, high + 1, (videos,), generator=rng)
    return Objects(
        cell=cell,
        color=torch.rand(videos, len(COLORS), generator=rng).argsort(1)[:, :high],
        shape=shape,
        offset=_offsets((videos, high), rng),
        first=group,
        last=group,
        present=torch.arange(high) < count[:, None],
    )


def _offsets(shape: tuple[int, int], rng: torch.Generator) -> Int[Tensor, "videos objects 2"]:
    """How far an object sits from the middle of its cell, in pixels."""
    return torch.randint(-2, 3, (*shape, 2), generator=rng)


def _disc_path(
    direction: Int[Tensor, " videos"], frames: int, rng: torch.Generator
) -> Float[Tensor, "videos frames 2"]:
    """A straight path of 40 to 64 pixels, wholly inside the picture."""
    videos = direction.shape[0]
    travel = 40 + 24 * torch.rand(videos, generator=rng)
    along_from = 8 + (SIDE - 16 - travel) * torch.rand(videos, generator=rng)
    across = 8 + (SIDE - 16) * torch.rand(videos, generator=rng)
    step = torch.linspace(0, 1, frames)
    forward = along_from[:, None] + travel[:, None] * step
    backward = along_from[:, None] + travel[:, None] * (1 - step)
    grows = torch.tensor([name in ("right", "down") for name in DIRECTIONS])[direction]
    along = torch.where(grows[:, None], forward, backward)
    aside = across[:, None].expand_as(along)
    sideways = torch.tensor([name in ("left", "right") for name in DIRECTIONS])[direction][:, None]
    return torch.stack([torch.where(sideways, aside, along), torch.where(sideways, along, aside)], dim=-1)


def _camera(rung: Rung, videos: int, frames: int, rng: torch.Generator) -> Int[Tensor, "videos frames 2"]:
    """The camera's shift in each frame: a bounded random walk, or none."""
    if rung == "static":
        return torch.zeros(videos, frames, 2, dtype=torch.long)
    steps = torch.randint(-1, 2, (videos, frames, 2), generator=rng)
    start = torch.randint(-1, 2, (videos, 1, 2), generator=rng)
    return (start + steps.cumsum(1)).clamp(-SHAKE, SHAKE)
