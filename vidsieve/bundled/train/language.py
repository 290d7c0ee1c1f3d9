"""Stage 2: the language model learns to answer, on visual tokens of the frozen tower."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.batches import Batch
from vidsieve.bundled.train.configs import Model
from vidsieve.bundled.train.lines import Lines
from vidsieve.bundled.train.packed import Probe, frame_of, packed_hidden, positions

RATE = 1.5e-3
FLOOR_RATE = 2e-5
WARMUP_STEPS = 100


def line_logits(
    model: Model,
    shape: ModelShape,
    tokens: Float[Tensor, "batch kept dim"],
    index: Int[Tensor, "batch kept"],
    groups: int,
    line_ids: Int[Tensor, "batch lines length"],
    *,
    after_time: bool = False,
    without: int | None = None,
    probe: Probe | None = None,
) -> Float[Tensor, "batch lines length vocabulary"]:
    """Next-word logits at every place of every line. Kept tokens stay at their original positions.

    after_time: see `positions`.  without, probe: see `packed_hidden`; the probe comes back for the visual tokens alone.
    """
    batch, lines = line_ids.shape[:2]
    frame, words = frame_of(model), model.get_input_embeddings()
    head = words(torch.tensor(frame.before)).expand(batch, -1, -1)
    parts = [head, tokens]
    if frame.newline:
        parts.append(model.model.image_newline.expand(batch, 1, -1))
    video_positions, text_positions = positions(model, shape, groups, lines, line_ids.shape[2], after_time=after_time)
    before = len(frame.before)
    if probe is not None:
        probe.rows = probe.rows + before
        if probe.evidence is not None:
            probe.evidence = pad(probe.evidence, (before, int(frame.newline)))
    places = [torch.arange(before).expand(batch, -1), before + index]
    if frame.newline:
        places.append(torch.full((batch, 1), video_positions.shape[1] - 1))
    here = video_positions[:, torch.cat(places, dim=1)]
    hidden = packed_hidden(
        model.model.language_model,
        torch.cat(parts, dim=1),
        words(line_ids),
        here,
        text_positions,
        without=without,
        probe=probe,
    )
    if probe is not None:
        probe.only(before, before + index.shape[1])
    return model.lm_head(hidden)


def language_loss(model: Model, shape: ModelShape, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Weighted cross-entropy, and the share of right answers by kind."""
    lines = batch.lines
    logits = line_logits(model, shape, batch.tokens, batch.index, batch.recipe.groups, lines.ids)
    asked = lines.targets >= 0
    losses = cross_entropy(logits[asked], lines.targets[asked], reduction="none")
    weights = lines.weights[asked]
    return (losses * weights).sum() / weights.sum(), accuracy_by_kind(logits.detach(), lines)


def accuracy_by_kind(logits: Float[Tensor, "batch lines length vocabulary"], lines: Lines) -> dict[str, float]:
    """Share of lines whose first asked word is right, for every kind that occurs (captions as `caption`)."""
    first = lines.first_asked[..., None]
    target = lines.targets.gather(-1, first)[..., 0]
    guess = logits.argmax(-1).gather(-1, first)[..., 0]
    right = guess == target
    masks = {name: lines.kinds == number for number, name in enumerate(lines.names)}
    return {name: right[mask].float().mean().item() for name, mask in masks.items() if mask.any()}
