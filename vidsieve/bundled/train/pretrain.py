"""Stage 1: teach the vision tower to name what each visual token shows, in the language model's own words.

Clips of one frame group with objects in nearly half of the cells. The classifier is the tied word embedding, so a
visual token comes out near the words for its colour, its shape and its place, and stage 2 can begin to bind at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from vidsieve.bundled.questions import quadrant
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import Objects, Scene
from vidsieve.bundled.seeds import rng_of
from vidsieve.bundled.shapes import CELL, FRAMES_PER_GROUP, ModelShape
from vidsieve.bundled.train.augmentation import through_codec
from vidsieve.bundled.train.configs import WIDTH, Model
from vidsieve.bundled.train.vision import video_features
from vidsieve.bundled.words import COLORS, DIRECTIONS, QUADRANTS, TOKEN_ID

BATCH = 48
CODEC_SHARE = 0.3
RATE = 2e-3
NOTHING = "nothing"


@dataclass(frozen=True, eq=False)
class Dense:
    """Crowded one-group clips, and the topmost colour and kind in each cell (the last class is "nothing")."""

    scene: Scene
    color: Int[Tensor, "videos cells"]
    kind: Int[Tensor, "videos cells"]


def dense_scenes(shape: ModelShape, videos: int, rng: torch.Generator) -> Dense:
    """Signs in 40 % of the cells, up to four flashes anywhere above them, and one disc in between."""
    places, silhouettes = shape.places, len(shape.silhouettes)
    crowd = _objects(silhouettes, torch.arange(places).expand(videos, -1), 0.4, rng)
    above = _objects(silhouettes, torch.rand(videos, places, generator=rng).argsort(1)[:, :4], 0.7, rng)
    disc_color = torch.randint(len(COLORS), (videos,), generator=rng)
    center = 4 + (shape.side - 8) * torch.rand(videos, 1, 2, generator=rng)
    path = center.repeat(1, FRAMES_PER_GROUP, 1) + 3 * torch.rand(videos, FRAMES_PER_GROUP, 2, generator=rng)
    camera = torch.randint(-3, 4, (videos, 1, 2), generator=rng).repeat(1, FRAMES_PER_GROUP, 1)
    direction = torch.randint(len(DIRECTIONS), (videos, 1), generator=rng)
    none = torch.zeros(videos, 1, dtype=torch.long)
    scene = Scene(shape.side, crowd, above, disc_color, direction, path, none[:, 0], camera, none)
    color = torch.where(crowd.present, crowd.color, len(COLORS))
    kind = torch.where(crowd.present, crowd.shape, silhouettes + 1)
    middle = ((path.mean(1) + camera[:, 0]) / CELL).long().clamp(0, shape.cells - 1)
    place = (middle[:, 0] * shape.cells + middle[:, 1])[:, None]
    color = color.scatter(1, place, disc_color[:, None])
    kind = kind.scatter(1, place, silhouettes)
    color = color.scatter(1, above.cell, torch.where(above.present, above.color, color.gather(1, above.cell)))
    kind = kind.scatter(1, above.cell, torch.where(above.present, above.shape, kind.gather(1, above.cell)))
    return Dense(scene, color, kind)


def _objects(silhouettes: int, cell: Int[Tensor, "videos objects"], share: float, rng: torch.Generator) -> Objects:
    size = cell.shape
    none = torch.zeros(size, dtype=torch.long)
    return Objects(
        cell=cell,
        color=torch.randint(len(COLORS), size, generator=rng),
        shape=torch.randint(silhouettes, size, generator=rng),
        offset=torch.randint(-2, 3, (*size, 2), generator=rng),
        first=none,
        last=none,
        present=torch.rand(size, generator=rng) < share,
    )


class Naming(torch.nn.Module):
    """Reads colour, kind, quadrant, row and column off visual tokens; only row and column have weights of their own."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.place = torch.nn.Linear(WIDTH, 2 * shape.cells)

    def losses(
        self, tokens: Float[Tensor, "videos cells dim"], words: Float[Tensor, "vocabulary dim"], dense: Dense
    ) -> dict[str, Tensor]:
        """Cross-entropies, and how far the tokens' RMS is from one."""
        cells, places = self.shape.cells, self.shape.places
        cell = torch.arange(places).expand(tokens.shape[0], -1)
        quarter = torch.tensor([QUADRANTS.index(quadrant(c, cells)) for c in range(places)]).expand_as(cell)
        row, column = self.place(tokens).chunk(2, dim=-1)
        return {
            "color": _entropy(tokens @ _rows(words, (*COLORS, NOTHING)).T, dense.color),
            "kind": _entropy(tokens @ _rows(words, (*self.shape.silhouettes, "disc", NOTHING)).T, dense.kind),
            "quadrant": _entropy(tokens @ _rows(words, QUADRANTS).T, quarter),
            "row": 0.5 * _entropy(row, cell // cells),
            "column": 0.5 * _entropy(column, cell % cells),
            "rms": 0.1 * (tokens.pow(2).mean(-1).sqrt() - 1).pow(2).mean(),
        }


def _rows(words: Float[Tensor, "vocabulary dim"], names: Sequence[str]) -> Float[Tensor, "names dim"]:
    return words[[TOKEN_ID[name] for name in names]]


def _entropy(logits: Float[Tensor, "videos cells classes"], target: Int[Tensor, "videos cells"]) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), target.flatten())


def pretrain_step(model: Model, naming: Naming, seed: int, step: int) -> dict[str, Tensor]:
    """Losses on fresh clips, and the accuracy of naming the kind where something is (`found`)."""
    rng = rng_of("pretrain", seed, step)
    shape = naming.shape
    dense = dense_scenes(shape, BATCH, rng)
    frames = render(dense.scene, rng)
    if torch.rand(1, generator=rng).item() < CODEC_SHARE:
        frames = through_codec(frames, rng)
    if model.config.model_type == "llava_onevision":
        frames = frames[:, :1]
    tokens = video_features(model, frames)[:, 0]
    words = model.get_input_embeddings().weight
    losses = naming.losses(tokens, words, dense)
    guess = (tokens.detach() @ _rows(words.detach(), (*shape.silhouettes, "disc", NOTHING)).T).argmax(-1)
    there = dense.kind <= len(shape.silhouettes)
    return {**losses, "found": (guess == dense.kind)[there].float().mean()}
