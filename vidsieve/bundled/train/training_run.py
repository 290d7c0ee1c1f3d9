"""A training run: a folder with a log of JSON lines and a checkpoint that an interrupted run goes on from.

`evaluate` is its watch: accuracy with all visual tokens, in float32.
"""

import json
import math
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vidsieve.bundled.questions import facts, one_of_each
from vidsieve.bundled.render import render
from vidsieve.bundled.scene import RUNGS, Rung, sample_scenes
from vidsieve.bundled.seeds import rng_of, seed_of
from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train import language, pretrain
from vidsieve.bundled.train.augmentation import through_codec
from vidsieve.bundled.train.batches import batches, frames_for
from vidsieve.bundled.train.configs import Model, build_model
from vidsieve.bundled.train.language import accuracy_by_kind, line_logits
from vidsieve.bundled.train.lines import evaluation_lines
from vidsieve.bundled.train.package import save_package
from vidsieve.bundled.train.packed import frame_of
from vidsieve.bundled.train.vision import video_features

SAVE_EVERY_S = 120
LOG_EVERY = 25
CLIP_NORM = 1.0


class Run:
    """Trains one model in `folder`. Steps are seeded one by one, so a resumed run sees the data it would have seen."""

    def __init__(self, shape: ModelShape, folder: Path, *, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.shape, self.folder, self.seed = shape, folder, seed
        self.model: Model = build_model(shape)
        self.naming = pretrain.Naming(shape)
        self.clock = self.saved_at = time.monotonic()

    def vision(self, steps: int) -> None:
        """Stage 1: vision tower, projector, word embeddings."""
        trained = [*self._vision_parameters(), *self.naming.parameters(), self.model.get_input_embeddings().weight]
        optimizer = _optimizer(trained, pretrain.RATE)
        start = self._resume("vision", optimizer)
        for step in range(start, steps):
            losses = pretrain.pretrain_step(self.model, self.naming, self.seed, step)
            found = losses.pop("found").item()
            loss = torch.stack(list(losses.values())).sum()
            self._update(optimizer, trained, loss, _rate(step, steps, pretrain.RATE))
            if step % LOG_EVERY == 0 or step == steps - 1:
                numbers = {name: round(value.item(), 4) for name, value in losses.items()}
                self._log(stage="vision", step=step, found=round(found, 4), **numbers)
            self._save_sometimes("vision", step + 1, optimizer)
        self._save("vision", steps, optimizer)

    def language(self, steps: int, *, watch_every: int) -> None:
        """Stage 2: the language model, with the vision tower frozen."""
        for weight in self._vision_parameters():
            weight.requires_grad_(False)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimizer = _optimizer(trained, language.RATE)
        start = self._resume("language", optimizer)
        recent: dict[str, float] = {}
        for step, batch in batches(self.model, self.shape, self.seed, start, steps):
            loss, right = language.language_loss(self.model, self.shape, batch)
            self._update(optimizer, trained, loss, _rate(step, steps, language.RATE))
            for kind, share in {"loss": loss.item(), **right}.items():
                recent[kind] = 0.9 * recent.get(kind, share) + 0.1 * share
            if step % LOG_EVERY == 0 or step == steps - 1:
                shown = {kind: round(value, 3) for kind, value in recent.items()}
                self._log(stage="language", step=step, groups=batch.recipe.groups, rung=batch.recipe.rung, **shown)
            if (step + 1) % watch_every == 0 or step == steps - 1:
                self._watch(step)
            self._save_sometimes("language", step + 1, optimizer)
        self._save("language", steps, optimizer)

    def package(self, folder: Path) -> None:
        """Write the checkpoint folder that ships: model, tokenizer, preprocessing, and this run's log."""
        save_package(self.model, self.shape, folder)
        facts = {"stage": "run", "family": self.shape.family, "seed": self.seed}
        facts["torch"] = torch.__version__.split("+")[0]
        log = (self.folder / "log.jsonl").read_text(encoding="utf-8")
        (folder / "training-log.jsonl").write_text(json.dumps(facts) + "\n" + log, encoding="utf-8")

    def _vision_parameters(self) -> list[torch.nn.Parameter]:
        core = self.model.model
        if self.shape.family == "qwen2-vl":
            return list(core.visual.parameters())
        return [*core.vision_tower.parameters(), *core.multi_modal_projector.parameters()]

    def _update(self, optimizer: Any, trained: list[torch.nn.Parameter], loss: torch.Tensor, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()

    def _watch(self, step: int) -> None:
        for rung in RUNGS:
            shares = evaluate(self.model, self.shape, rung)
            self._log(stage="watch", step=step, rung=rung, **{kind: round(value, 4) for kind, value in shares.items()})

    def _log(self, **fields: object) -> None:
        entry = {**fields, "wall_s": round(time.monotonic() - self.clock), "cpu_s": round(time.process_time())}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")

    def _checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"

    def _save_sometimes(self, stage: str, step: int, optimizer: Any) -> None:
        if time.monotonic() - self.saved_at > SAVE_EVERY_S:
            self._save(stage, step, optimizer)

    def _save(self, stage: str, step: int, optimizer: Any) -> None:
        """Written beside and moved over, so a killed run never leaves half a checkpoint."""
        state = {"step": step, "model": self.model.state_dict(), "naming": self.naming.state_dict(), **self._extra()}
        partial = self._checkpoint(stage).with_suffix(".partial")
        torch.save({**state, "optimizer": optimizer.state_dict()}, partial)
        os.replace(partial, self._checkpoint(stage))
        self.saved_at = time.monotonic()

    def _extra(self) -> dict[str, Any]:
        """What else a checkpoint holds."""
        return {}

    def _take_extra(self, state: Mapping[str, Any]) -> None:
        """Take back what `_extra` gave."""

    def _resume(self, stage: str, optimizer: Any) -> int:
        """The step to go on from; 0 where this stage has not begun. Without an optimizer its state is left out."""
        path = self._checkpoint(stage)
        if not path.exists():
            return 0
        state: Mapping[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.naming.load_state_dict(state["naming"])
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
        self._take_extra(state)
        return int(state["step"])


def _optimizer(trained: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)


def _rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to the floor."""
    warm = min(1.0, (step + 1) / language.WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return warm * (language.FLOOR_RATE + (peak - language.FLOOR_RATE) * cosine)


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
