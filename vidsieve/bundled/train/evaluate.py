"""Accuracy on clips of any split, with all visual tokens, in float32."""

import random

import torch

from vidsieve.bundled.questions import facts, one_of_each
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import Rung, sample_scenes
from vidsieve.bundled.seeds import rng_of, seed_of
from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.batches import frames_for
from vidsieve.bundled.train.codec import through_codec
from vidsieve.bundled.train.configs import Model
from vidsieve.bundled.train.language import accuracy_by_kind, line_logits
from vidsieve.bundled.train.lines import evaluation_lines
from vidsieve.bundled.train.packed import frame_of
from vidsieve.bundled.train.vision import video_features

BATCH = 16


@torch.no_grad()
def evaluate(model: Model, shape: ModelShape, rung: Rung, *, videos: int = 96, codec: bool = False) -> dict[str, float]:
    """Share of right answers by kind and over `all` kinds, on clips that no step and no split uses."""
    sums: dict[str, float] = {}
    for chunk in range(videos // BATCH):
        rng = rng_of("watch", rung, chunk)
        scene = sample_scenes(shape, rung, BATCH, rng)
        frames = render(scene, rng)
        if codec:
            frames = through_codec(frames, rng)
        choice = random.Random(seed_of("watch", rung, chunk))
        lines = evaluation_lines(
            shape, [one_of_each(clip, choice, shape.kinds) for clip in facts(scene)], frame_of(model).after
        )
        tokens = video_features(model, frames_for(model, frames))
        flat = tokens.flatten(1, 2)
        index = torch.arange(flat.shape[1]).expand(len(flat), -1)
        logits = line_logits(model, shape, flat, index, tokens.shape[1], lines.ids)
        for kind, share in accuracy_by_kind(logits, lines).items():
            sums[kind] = sums.get(kind, 0.0) + share
    means = {kind: total / (videos // BATCH) for kind, total in sums.items()}
    return {"all": sum(means.values()) / len(means), **means}
