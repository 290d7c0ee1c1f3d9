"""What happens in a synthetic clip: a batch of scenes drawn at random, before any pixel is painted.

A clip shows a textured background, *signs* (objects that stay), one *disc* (moves all clip long, on one straight line
or two) and *flashes* (objects that are there for one frame group of two frames only). Three rungs of difficulty:

- `static`: the camera stands still; signs and flashes share no silhouette, and no flash falls on a sign.
- `jitter`: the camera shakes; signs and flashes share their silhouettes, and a flash may fall on a sign.
- `cuts`: as jitter, and once or twice the scene is cut to another background with other signs.

An event is a change, so no flash lies in the first frame group.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vidsieve.bundled.shapes import CELL, FRAMES_PER_GROUP, ModelShape
from vidsieve.bundled.words import COLORS, DIRECTIONS, SIGN_SHAPES

Rung = Literal["static", "jitter", "cuts"]
RUNGS: tuple[Rung, ...] = get_args(Rung)

MAX_SCENES = 3
SHAKE = 3
"""Largest camera shift in pixels, each way."""
SIGN_SLOTS = 2 * MAX_SCENES
DISC_REACH = 8
"""Nearest that the disc's centre comes to the edge, in pixels."""


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
    """A batch of clips. Pixel offsets are (down, right); `disc_path` holds the disc's centre in each frame.

    `turn` is the frame group in which the disc begins its last leg.
    """

    side: int
    signs: Objects
    flashes: Objects
    disc_color: Int[Tensor, " videos"]
    disc_direction: Int[Tensor, "videos legs"]
    disc_path: Float[Tensor, "videos frames 2"]
    turn: Int[Tensor, " videos"]
    camera: Int[Tensor, "videos frames 2"]
    setting: Int[Tensor, "videos groups"]

    @property
    def groups(self) -> int:
        """Frame groups in each clip."""
        return self.setting.shape[1]

    @property
    def cells(self) -> int:
        """Rows, and columns, of visual tokens in a frame group."""
        return self.side // CELL


@dataclass(frozen=True)
class Window:
    """A square part of the picture, in cells, that everything in a clip happens in."""

    row: int
    column: int
    cells: int

    def inside(self, cells: int) -> Int[Tensor, " places"]:
        """Row-major indices of the window's cells in a picture of `cells` x `cells`."""
        rows, columns = torch.arange(self.cells) + self.row, torch.arange(self.cells) + self.column
        return (rows[:, None] * cells + columns).flatten()


def sample_scenes(
    shape: ModelShape,
    rung: Rung,
    videos: int,
    rng: torch.Generator,
    *,
    groups: int | None = None,
    flashes: tuple[int, int] | None = None,
    window: Window | None = None,
) -> Scene:
    """Draw `videos` clips of `groups` frame groups with between `flashes` events each; left out, as the shape has."""
    groups, flashes = groups or shape.groups, flashes or shape.flashes
    window = window or Window(0, 0, shape.cells)
    setting = _settings(rung, videos, groups, rng)
    places = window.inside(shape.cells)
    cells = places[torch.rand(videos, len(places), generator=rng).argsort(1)]
    signs = _signs(shape, rung, setting, cells[:, :SIGN_SLOTS], rng)
    events = _flashes(shape, rung, signs, cells[:, SIGN_SLOTS:], groups, flashes, rng)
    direction = torch.randint(len(DIRECTIONS), (videos, 1), generator=rng)
    if shape.legs == 2:
        other = torch.randint(1, len(DIRECTIONS), (videos, 1), generator=rng)
        direction = torch.cat([direction, (direction + other) % len(DIRECTIONS)], dim=1)
    frames = groups * FRAMES_PER_GROUP
    disc_color = torch.randint(len(COLORS), (videos,), generator=rng)
    path, turn = _disc_path(shape, direction, frames, window, rng)
    return Scene(
        side=shape.side,
        signs=signs,
        flashes=events,
        disc_color=disc_color,
        disc_direction=direction,
        disc_path=path,
        turn=turn,
        camera=_camera(rung, videos, frames, rng),
        setting=setting,
    )


def _settings(rung: Rung, videos: int, groups: int, rng: torch.Generator) -> Int[Tensor, "videos groups"]:
    """Which background each frame group shows: 0 throughout, or counting up at each cut.

    A scene lasts two groups at least (in a shorter one a sign could not be told from a flash), in long clips an eighth.
    """
    shortest = max(2, groups // 8)
    most = min(MAX_SCENES, groups // shortest) - 1
    if rung != "cuts" or most < 1:
        return torch.zeros(videos, groups, dtype=torch.long)
    cuts = torch.randint(1, most + 1, (videos, 1), generator=rng)
    number = torch.arange(most)
    spare = groups - shortest * (cuts + 1)
    later = ((spare + 1) * torch.rand(videos, most, generator=rng)).long().sort(dim=1).values
    cut_at = torch.where(number < cuts, later + shortest * (number + 1), groups)
    return (torch.arange(groups)[None, :, None] >= cut_at[:, None, :]).sum(-1)


def _signs(
    shape: ModelShape,
    rung: Rung,
    setting: Int[Tensor, "videos groups"],
    cells: Int[Tensor, "videos objects"],
    rng: torch.Generator,
) -> Objects:
    """The possible signs of all scenes; the first of a scene is always there. Colours differ within a clip."""
    videos, count = cells.shape
    slot = torch.arange(count)
    scenes = MAX_SCENES if shape.legs == 1 else setting.amax(1, keepdim=True) + 1  # fewer scenes have more signs each
    home = (slot * scenes // count).expand(videos, -1)
    shown = setting[:, None, :] == home[:, :, None]
    first = shown.long().argmax(-1)
    second = torch.rand(videos, count, generator=rng) < 0.6
    leads = torch.cat([torch.ones(videos, 1, dtype=torch.bool), home[:, 1:] != home[:, :-1]], dim=1)
    present = shown.any(-1) & (second | leads)
    own = _sign_shapes(shape)
    silhouette = torch.full((videos, count), int(own[0]))
    if len(own) > 1:
        silhouette = own[torch.randint(len(own), (videos, count), generator=rng)]
    if rung != "static":
        alike = torch.rand(videos, count, generator=rng) < 0.5
        other = torch.randint(len(shape.silhouettes), (videos, count), generator=rng)
        silhouette = torch.where(alike, other, silhouette)
    return Objects(
        cell=cells,
        color=torch.rand(videos, len(COLORS), generator=rng).argsort(1)[:, :count],
        shape=silhouette,
        offset=_offsets((videos, count), rng),
        first=first,
        last=first + shown.sum(-1) - 1,
        present=present,
    )


def _sign_shapes(shape: ModelShape) -> Int[Tensor, " silhouettes"]:
    """The silhouettes that on the static rung signs alone have."""
    return torch.tensor([number for number, name in enumerate(shape.silhouettes) if name in SIGN_SHAPES])


def _flashes(
    shape: ModelShape,
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
    own = _sign_shapes(shape)
    silhouette = torch.randint(len(shape.silhouettes) - len(own), (videos, high), generator=rng)
    group = 1 + torch.rand(videos, groups - 1, generator=rng).argsort(1)
    group = group.repeat(1, -(-high // (groups - 1)))[:, :high]
    if rung != "static":
        shared = torch.rand(videos, high, generator=rng) < 0.2
        of_signs = own[torch.randint(len(own), (videos, high), generator=rng)] if len(own) > 1 else own
        silhouette = torch.where(shared, of_signs, silhouette)
        on_sign = torch.rand(videos, high, generator=rng) < 0.2
        under = signs.cell[:, torch.arange(high) % signs.cell.shape[1]]
        cell = torch.where(on_sign, under, cell)
    count = torch.randint(low, high + 1, (videos,), generator=rng)
    return Objects(
        cell=cell,
        color=torch.rand(videos, len(COLORS), generator=rng).argsort(1)[:, :high],
        shape=silhouette,
        offset=_offsets((videos, high), rng),
        first=group,
        last=group,
        present=torch.arange(high) < count[:, None],
    )


def _offsets(shape: tuple[int, int], rng: torch.Generator) -> Int[Tensor, "videos objects 2"]:
    """How far an object sits from the middle of its cell, in pixels."""
    return torch.randint(-2, 3, (*shape, 2), generator=rng)


def _disc_path(
    shape: ModelShape, direction: Int[Tensor, "videos legs"], frames: int, window: Window, rng: torch.Generator
) -> tuple[Float[Tensor, "videos frames 2"], Int[Tensor, " videos"]]:
    """The disc's centre in each frame, and the frame group in which its last leg begins."""
    if shape.legs == 1:
        path = _straight_path(shape.side, direction[:, 0], frames, rng)
        return path, torch.zeros(len(path), dtype=torch.long)
    return _turning_path(direction, frames, window, rng)


def _straight_path(
    side: int, direction: Int[Tensor, " videos"], frames: int, rng: torch.Generator
) -> Float[Tensor, "videos frames 2"]:
    """A straight path of 40 to 64 pixels, wholly inside the picture."""
    videos = direction.shape[0]
    travel = 40 + 24 * torch.rand(videos, generator=rng)
    along_from = DISC_REACH + (side - 2 * DISC_REACH - travel) * torch.rand(videos, generator=rng)
    across = DISC_REACH + (side - 2 * DISC_REACH) * torch.rand(videos, generator=rng)
    step = torch.linspace(0, 1, frames)
    forward = along_from[:, None] + travel[:, None] * step
    backward = along_from[:, None] + travel[:, None] * (1 - step)
    grows = torch.tensor([name in ("right", "down") for name in DIRECTIONS])[direction]
    along = torch.where(grows[:, None], forward, backward)
    aside = across[:, None].expand_as(along)
    sideways = torch.tensor([name in ("left", "right") for name in DIRECTIONS])[direction][:, None]
    return torch.stack([torch.where(sideways, aside, along), torch.where(sideways, along, aside)], dim=-1)


def _turning_path(
    direction: Int[Tensor, "videos legs"], frames: int, window: Window, rng: torch.Generator
) -> tuple[Float[Tensor, "videos frames 2"], Int[Tensor, " videos"]]:
    """Two straight legs of 0.35 to 0.6 times the window's width, the turn between 0.35 and 0.65 of the time."""
    videos = direction.shape[0]
    room = window.cells * CELL - 2 * DISC_REACH
    length = room * (0.35 + 0.25 * torch.rand(videos, 2, generator=rng))
    turn = 0.35 + 0.3 * torch.rand(videos, 1, generator=rng)
    step = torch.linspace(0, 1, frames)
    done = torch.stack([(step / turn).clamp(max=1), ((step - turn) / (1 - turn)).clamp(min=0)], dim=-1)
    heading = torch.tensor([[0.0, -1.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])[direction]
    path = ((done * length[:, None])[..., None] * heading[:, None]).sum(2)
    low, high = path.amin(1, keepdim=True), path.amax(1, keepdim=True)
    corner = torch.tensor([window.row, window.column]) * CELL + DISC_REACH
    start = corner - low + (room - (high - low)) * torch.rand(videos, 1, 2, generator=rng)
    return start + path, (turn[:, 0] * frames).long() // FRAMES_PER_GROUP


def _camera(rung: Rung, videos: int, frames: int, rng: torch.Generator) -> Int[Tensor, "videos frames 2"]:
    """The camera's shift in each frame: a bounded random walk, or none."""
    if rung == "static":
        return torch.zeros(videos, frames, 2, dtype=torch.long)
    steps = torch.randint(-1, 2, (videos, frames, 2), generator=rng)
    start = torch.randint(-1, 2, (videos, 1, 2), generator=rng)
    return (start + steps.cumsum(1)).clamp(-SHAKE, SHAKE)
