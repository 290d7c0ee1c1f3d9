"""A training run of a mini model: as `Run`, with the staged curriculum, pooled clips and a committed checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from vidsieve.bundled.scene import RUNGS
from vidsieve.bundled.shapes import ModelShape
from vidsieve.bundled.train.clips import ClipPool, LongBatch
from vidsieve.bundled.train.language import accuracy_by_kind, line_logits
from vidsieve.bundled.train.marks import Marks
from vidsieve.bundled.train.muon import Muon
from vidsieve.bundled.train.stages import STAGES, Position, Stage
from vidsieve.bundled.train.training_run import LOG_EVERY, Run
from vidsieve.bundled.train.watch import Watch

CHECKPOINTS = Path(__file__).parent / "checkpoints"
MATRIX_RATE, OTHER_RATE, DECAY = 0.02, 1.5e-3, 0.02
WARMUP_STEPS, FLOOR = 100, 0.02
FALL_FROM = 0.87
"""From this share of the steps on the rates fall linearly."""
MARK_WEIGHT = 0.25
HARD_WEIGHTS = {"first_color": 1.5, "last_color": 1.5, "first_direction": 3.0, "last_direction": 3.0}
WATCHED = ("full", "random-25", "random-10", "unlike-25", "unlike-10")
WATCH_VIDEOS, LAYER_VIDEOS = 24, 12
WATCH_STAGES = 1
"""Evaluations are of full clips, so they begin in the last stage."""


class LongRun(Run):
    """Trains one mini model in `folder`, or goes on from there, or from `committed` where the folder is empty.

    Products are in bfloat16, which takes two thirds of the time on a processor that has it; weights stay float32.
    """

    def __init__(
        self,
        shape: ModelShape,
        folder: Path,
        *,
        seed: int,
        stages: Sequence[Stage] = STAGES,
        committed: Path = CHECKPOINTS,
    ) -> None:
        super().__init__(shape, folder, seed=seed)
        self.stages, self.committed = tuple(stages), committed
        self.position = Position()
        self.marks = Marks(shape)
        self.measured: dict[str, Any] = {}
        self.started_at = 0

    def vision(self, steps: int) -> None:
        """Stage 1, unless the folder's or the committed weights are past it."""
        if self._fresh() and self.checkpoint_file.exists():
            self._adopt()
        elif not self._checkpoint("language").exists():
            super().vision(steps)

    def language(self, steps: int, *, watch_every: int) -> None:
        """Stage 2: the language model, with the vision tower frozen."""
        for weight in self._vision_parameters():
            weight.requires_grad_(False)
        optimizer = self._optimizer()
        self._resume("language", optimizer)
        pool = ClipPool(self.model, self.shape, self.stages, self.seed)
        watch = Watch(self.model, self.shape, videos=WATCH_VIDEOS)
        recent: dict[str, float] = {}
        while self.position.step < steps:
            optimizer.scale_rates(self._rate_factor(steps))
            batch = pool.batch(self.position)
            step, stage = self.position.step, self.position.stage
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses, right = self.losses(batch)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            for name, share in {**{name: value.item() for name, value in losses.items()}, **right}.items():
                recent[name] = 0.95 * recent.get(name, share) + 0.05 * share
            turned = self.position.advance(self.stages, batch.sort, right)
            if step % LOG_EVERY == 0 or turned:
                shown = {name: round(value, 3) for name, value in recent.items()}
                self._log(step=step, at=stage, since=self.position.since, kept=batch.index.shape[1], **shown)
            last = self.position.step == steps
            late = self.position.stage >= len(self.stages) - WATCH_STAGES
            if last or (late and (self.position.step % watch_every == 0 or turned)):
                self._look(watch, step)
            self._save_sometimes("language", self.position.step, optimizer)
        self._save("language", self.position.step, optimizer)

    def losses(self, batch: LongBatch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """The losses of lines and of single tokens, and the share of right answers by kind."""
        lines = batch.lines
        probe = self.marks.probe(batch)
        logits = line_logits(
            self.model,
            self.shape,
            batch.tokens,
            batch.index,
            batch.sort.groups,
            lines.ids,
            after_time=batch.after_time,
            probe=probe,
        )
        asked = lines.targets >= 0
        by_kind = torch.tensor([HARD_WEIGHTS.get(name, 1.0) for name in lines.names])[lines.kinds][..., None]
        weights = (lines.weights * by_kind)[asked]
        each = cross_entropy(logits[asked], lines.targets[asked], reduction="none")
        marks = {name: MARK_WEIGHT * loss for name, loss in self.marks.losses(probe, batch).items()}
        return {"loss": (each * weights).sum() / weights.sum(), **marks}, accuracy_by_kind(logits.detach(), lines)

    @property
    def checkpoint_file(self) -> Path:
        """The committed weights in bfloat16; a JSON file of the same name has the position and what was measured."""
        return self.committed / f"{self.shape.name}.safetensors"

    def commit(self) -> Path:
        """Write the weights of this folder's last checkpoint, and where the run is, to the committed files."""
        self._resume("language", None)
        self.committed.mkdir(parents=True, exist_ok=True)
        tied = self.shape.family == "qwen2-vl" or self.model.config.tie_word_embeddings
        weights = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        if tied:
            weights.pop("model.lm_head.weight")
        weights |= {f"marks.{name}": weight for name, weight in self.marks.state_dict().items()}
        save_file({name: weight.bfloat16().contiguous() for name, weight in weights.items()}, self.checkpoint_file)
        facts = {"seed": self.seed, "position": self.position.as_dict(), "measured": self.measured}
        self.checkpoint_file.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return self.checkpoint_file

    def _adopt(self) -> None:
        """Weights and position of the committed checkpoint; the optimizer begins anew."""
        weights = {name: weight.float() for name, weight in load_file(self.checkpoint_file).items()}
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "marks": {}}
        for name, weight in weights.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = weight
        missing = self.model.load_state_dict(parts["model"], strict=False).missing_keys
        assert set(missing) <= {"lm_head.weight"}, missing
        self.marks.load_state_dict(parts["marks"])
        facts = json.loads(self.checkpoint_file.with_suffix(".json").read_text(encoding="utf-8"))
        self.seed, self.measured = facts["seed"], facts["measured"]
        self.position = Position(**facts["position"])
        self.started_at = self.position.step
        self._log(adopted=self.checkpoint_file.name, step=self.position.step)

    def _fresh(self) -> bool:
        return not any(self._checkpoint(stage).exists() for stage in ("vision", "language"))

    def _optimizer(self) -> Muon:
        core = self.model.model.language_model.layers
        matrices = [weight for weight in core.parameters() if weight.ndim == 2]
        hidden = {id(weight) for weight in matrices}
        others = [weight for weight in self.model.parameters() if weight.requires_grad and id(weight) not in hidden]
        return Muon(matrices, [*others, *self.marks.parameters()], rate=MATRIX_RATE, other_rate=OTHER_RATE, decay=DECAY)

    def _rate_factor(self, steps: int) -> float:
        """Linear warm-up after a start without an optimizer's state, level, then down to the floor."""
        step = self.position.step
        warm = min(1.0, (step - self.started_at + 1) / WARMUP_STEPS)
        left = (steps - step) / ((1 - FALL_FROM) * steps)
        return warm * (FLOOR + (1 - FLOOR) * min(1.0, left))

    def _look(self, watch: Watch, step: int) -> None:
        for rung in RUNGS:
            shares = {how: watch.accuracy(rung, how) for how in WATCHED}
            by_kind = {kind: round(share, 3) for kind, share in shares["full"].items()}
            overall = {how: round(share["all"], 3) for how, share in shares.items()}
            self.measured[rung] = {"step": step, **overall, "kinds": by_kind}
            self._log(stage="watch", step=step, rung=rung, **overall, kinds=by_kind)
        other = watch.accuracy("static", "full", after_time=True)["all"]
        self.measured["after_time"] = round(other, 3)
        self.measured["layers"] = watch.layers("static", videos=LAYER_VIDEOS)
        self._log(stage="layers", step=step, after_time=round(other, 3), cost=self.measured["layers"])

    def _extra(self) -> dict[str, Any]:
        return {
            "marks": self.marks.state_dict(),
            "position": self.position.as_dict(),
            "measured": self.measured,
            "started_at": self.started_at,
        }

    def _take_extra(self, state: Mapping[str, Any]) -> None:
        if "position" in state:
            self.marks.load_state_dict(state["marks"])
            self.position = Position(**state["position"])
            self.measured, self.started_at = dict(state["measured"]), int(state["started_at"])
