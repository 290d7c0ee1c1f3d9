"""Painting scenes: background, signs, disc and flashes, flicker and sensor noise, to 8-bit frames."""

import functools

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from vidsieve.bundled.scene import MAX_SCENES, SHAKE, Objects, Scene
from vidsieve.bundled.shapes import CELL, FRAMES_PER_GROUP

PALETTE = ((220, 40, 40), (40, 185, 60), (50, 80, 230), (235, 215, 45), (170, 50, 200), (240, 240, 240))
"""RGB of `words.COLORS`."""
STAMP = 15
"""Side in pixels of the square an object is painted in."""
NOISE_LEVELS = 4.0
FLICKER = 0.015


def render(scene: Scene, rng: torch.Generator) -> UInt8[Tensor, "videos frames 3 height width"]:
    """The clips of `scene` as RGB frames. The same scene and generator state give the same pixels."""
    videos, frames = scene.camera.shape[:2]
    canvas = _backgrounds(scene, rng)
    canvas *= 1 + FLICKER * (2 * torch.rand(videos, frames, 1, 1, 1, generator=rng) - 1)
    _paint_objects(canvas, scene, scene.signs, rng)
    _paint_disc(canvas, scene, rng)
    _paint_objects(canvas, scene, scene.flashes, rng)
    _add_noise(canvas, rng)
    return canvas.clamp_(0, 255).round_().to(torch.uint8)


def _backgrounds(scene: Scene, rng: torch.Generator) -> Float[Tensor, "videos frames 3 height width"]:
    """A smooth field of colour with fine texture for each setting, seen through the shaken camera."""
    videos, frames = scene.camera.shape[:2]
    settings = int(scene.setting.max()) + 1
    assert settings <= MAX_SCENES
    side, outer = scene.side, scene.side + 2 * SHAKE
    smooth = 40 + 90 * torch.rand(videos * settings, 3, 4, 4, generator=rng)
    fine = 8 * torch.randn(videos * settings, 1, outer // 2, outer // 2, generator=rng)
    field = interpolate(smooth, size=outer, mode="bilinear", align_corners=True) + interpolate(fine, size=outer)
    field = field.view(videos, settings, 3, outer, outer)
    setting = scene.setting.repeat_interleave(FRAMES_PER_GROUP, dim=1)
    corner = SHAKE - scene.camera
    place = torch.cat([setting[..., None], corner], dim=-1).tolist()
    # Stacking views is twenty times faster here than indexing: the windows overlap, so an index copies row by row.
    views = [field[v, k, :, y : y + side, x : x + side] for v in range(videos) for k, y, x in place[v]]
    return torch.stack(views).view(videos, frames, 3, side, side)


def _paint_objects(
    canvas: Float[Tensor, "videos frames 3 height width"],
    scene: Scene,
    objects: Objects,
    rng: torch.Generator,
) -> None:
    """Stamp each object into every frame of the groups it is seen in; the camera moves it."""
    frames, cells = scene.camera.shape[1], scene.cells
    tint = _tints(objects.color, rng)
    group = torch.arange(frames) // FRAMES_PER_GROUP
    seen = (group >= objects.first[..., None]) & (group <= objects.last[..., None]) & objects.present[..., None]
    video, item, frame = seen.nonzero(as_tuple=True)
    cell = objects.cell[video, item]
    corner = torch.stack([cell // cells, cell % cells], dim=-1) * CELL + CELL // 2
    center = corner + objects.offset[video, item] + scene.camera[video, frame]
    _stamp(canvas, video, frame, center, _masks()[objects.shape[video, item]], tint[video, item])


def _paint_disc(canvas: Float[Tensor, "videos frames 3 height width"], scene: Scene, rng: torch.Generator) -> None:
    videos, frames = scene.camera.shape[:2]
    tint = _tints(scene.disc_color[:, None], rng)[:, 0]
    video = torch.arange(videos).repeat_interleave(frames)
    frame = torch.arange(frames).repeat(videos)
    center = (scene.disc_path.round().long() + scene.camera).view(-1, 2)
    _stamp(canvas, video, frame, center, _masks()[-1].expand(len(video), -1, -1), tint[video])


def _stamp(
    canvas: Float[Tensor, "videos frames 3 height width"],
    video: Int[Tensor, " items"],
    frame: Int[Tensor, " items"],
    center: Int[Tensor, "items 2"],
    mask: Bool[Tensor, "items stamp stamp"],
    tint: Float[Tensor, "items 3"],
) -> None:
    """Paint `tint` where `mask`, around `center`. What falls outside the picture is cut off."""
    side = canvas.shape[-1]
    reach = torch.arange(STAMP) - STAMP // 2
    row, column = center[:, 0, None] + reach, center[:, 1, None] + reach
    inside = ((row >= 0) & (row < side))[:, :, None] & ((column >= 0) & (column < side))[:, None, :]
    item, down, right = (mask & inside).nonzero(as_tuple=True)
    at = (video[item], frame[item], row[item, down], column[item, right])
    canvas.permute(0, 1, 3, 4, 2)[at] = tint[item]


def _tints(color: Int[Tensor, "videos objects"], rng: torch.Generator) -> Float[Tensor, "videos objects 3"]:
    """The palette's colour, a little different for every object."""
    base = torch.tensor(PALETTE, dtype=torch.float32)[color]
    return base + 24 * (torch.rand(base.shape, generator=rng) - 0.5)


@functools.cache
def _masks() -> Bool[Tensor, "shapes stamp stamp"]:
    """Silhouettes in the order of `words.LONG_SHAPES`, then the disc."""
    axis = torch.arange(STAMP) - STAMP // 2
    y, x = axis[:, None].float(), axis[None, :].float()
    radius = (x**2 + y**2).sqrt()
    box = (x.abs() <= 6) & (y.abs() <= 6)
    cross = ((x.abs() <= 1.5) | (y.abs() <= 1.5)) & box
    ring = (radius <= 6.6) & (radius >= 3.4)
    triangle = (y <= 5) & (y >= -6) & (x.abs() <= (y + 7) / 2)
    diamond = x.abs() + y.abs() <= 6.5
    square = (x.abs() <= 5) & (y.abs() <= 5)
    bar, pillar = box & (y.abs() <= 2.5), box & (x.abs() <= 2.5)
    frame = box & ((x.abs() >= 4) | (y.abs() >= 4))
    return torch.stack([cross, ring, triangle, diamond, square, bar, pillar, frame, radius <= 6.2])


@functools.cache
def _noise_bank() -> Float[Tensor, " samples"]:
    """Sensor noise drawn once; clips read it from random places, which is many times faster than drawing anew."""
    return NOISE_LEVELS * torch.randn(1 << 22, generator=torch.Generator().manual_seed(20250514))


def _add_noise(canvas: Float[Tensor, "videos frames 3 height width"], rng: torch.Generator) -> None:
    bank = _noise_bank()
    size = canvas[0].numel()
    start = torch.randint(bank.numel() - size, (canvas.shape[0],), generator=rng)
    for clip, at in zip(canvas, start.tolist(), strict=True):
        clip += bank[at : at + size].view(clip.shape)
