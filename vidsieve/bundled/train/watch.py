"""What a mini model can do while it trains: accuracy by kind and retention, and what each layer is worth."""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.bundled.questions import one_of_each
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import Rung, Window, sample_scenes
from vidsieve.bundled.seeds import rng_of, seed_of
from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.clips import EncodedClip, encode
from vidsieve.bundled.train.configs import Model
from vidsieve.bundled.train.language import accuracy_by_kind, line_logits
from vidsieve.bundled.train.lines import Lines, evaluation_lines
from vidsieve.bundled.train.packed import frame_of

TOKENS_AT_ONCE = 8192
CHUNK = 4


@dataclass(frozen=True, eq=False)
class Exam:
    """Clips of one rung that no step and no split uses, with one question of every kind each."""

    clips: list[EncodedClip]
    lines: Lines


class Watch:
    """Asks the held-back clips of every rung; they are encoded once, so the vision tower must be final."""

    def __init__(self, model: Model, shape: ModelShape, *, videos: int) -> None:
        self.model, self.shape, self.videos = model, shape, videos

    @functools.cache  # noqa: B019 - a watch lives as long as its run
    @torch.no_grad()
    def exam(self, rung: Rung) -> Exam:
        """The clips and lines of a rung."""
        places = Window(0, 0, self.shape.cells).inside(self.shape.cells)
        clips: list[EncodedClip] = []
        for chunk in range(-(-self.videos // CHUNK)):
            rng = rng_of("watch", self.shape.frames, rung, chunk)
            scene = sample_scenes(self.shape, rung, CHUNK, rng)
            clips += encode(self.model, scene, render(scene, rng), places, None)
        clips = clips[: self.videos]
        choice = random.Random(seed_of("watch", self.shape.frames, rung))
        asked = [one_of_each(clip.facts, choice, self.shape.kinds) for clip in clips]
        return Exam(clips, evaluation_lines(self.shape, asked, frame_of(self.model).after))

    @torch.no_grad()
    def accuracy(
        self, rung: Rung, how: str, *, videos: int | None = None, without: int | None = None, after_time: bool = False
    ) -> dict[str, float]:
        """Share of right answers by kind and over `all`. `how` is `full`, or `random` or `unlike` with a per cent."""
        exam = self.exam(rung)
        logits = []
        for tokens, index, lines in self._parts(rung, how, videos or self.videos):
            logits.append(
                line_logits(
                    self.model,
                    self.shape,
                    tokens,
                    index,
                    self.shape.groups,
                    lines,
                    without=without,
                    after_time=after_time,
                )
            )
        shares = accuracy_by_kind(torch.cat(logits), _first(exam.lines, videos or self.videos))
        return {"all": sum(shares.values()) / len(shares), **shares}

    def layers(self, rung: Rung, *, videos: int) -> list[float]:
        """Points of accuracy with all tokens that leaving each layer out costs."""
        whole = self.accuracy(rung, "full", videos=videos)["all"]
        count = self.shape.layers
        left = [self.accuracy(rung, "full", videos=videos, without=layer)["all"] for layer in range(count)]
        return [round(100 * (whole - share), 1) for share in left]

    def _parts(self, rung: Rung, how: str, videos: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        exam = self.exam(rung)
        tokens = torch.stack([clip.tokens for clip in exam.clips[:videos]])
        index = kept(tokens, how, rng_of("watch", rung, how))
        flat = tokens.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
        size = max(1, TOKENS_AT_ONCE // index.shape[1])
        for start in range(0, videos, size):
            part = slice(start, min(videos, start + size))
            yield flat[part], index[part], exam.lines.ids[part]


def kept(tokens: Float[Tensor, "clips groups cells dim"], how: str, rng: torch.Generator) -> Int[Tensor, "clips kept"]:
    """Ascending indices of tokens that are left: all, a random share, or those least like the mean of their place."""
    clips, groups, cells, _ = tokens.shape
    if how == "full":
        return torch.arange(groups * cells).expand(clips, -1)
    name, _, share = how.partition("-")
    count = max(1, round(int(share) / 100 * groups * cells))
    if name == "random":
        score = torch.rand(clips, groups, cells, generator=rng)
    else:
        score = -torch.cosine_similarity(tokens, tokens.mean(1, keepdim=True), dim=-1)
    return score.flatten(1).topk(count, dim=1).indices.sort(dim=1).values


def _first(lines: Lines, videos: int) -> Lines:
    return Lines(
        lines.ids[:videos],
        lines.targets[:videos],
        lines.weights[:videos],
        lines.kinds[:videos],
        lines.about[:videos],
        lines.names,
    )
