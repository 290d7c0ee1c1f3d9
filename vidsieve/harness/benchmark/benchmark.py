"""Measure policies beside the uncompressed model: one workload after the other, what was measured never lost."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import MediaError, path_fault
from vidsieve.framework.task import Example
from vidsieve.harness.benchmark.bench_cells import (
    UNCOMPRESSED,
    Cell,
    cells_of,
    policies_of,
    timed_facts,
    uncompressed_facts,
)
from vidsieve.harness.benchmark.bench_files import FORMAT, KIND
from vidsieve.harness.benchmark.bench_settings import BenchSettings
from vidsieve.harness.benchmark.model_shapes import model_shape
from vidsieve.harness.benchmark.stand_in_tokenizer import QUESTION
from vidsieve.harness.benchmark.synthetic_video import FPS, sentence, synthetic_frames

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry
    from vidsieve.harness.benchmark.memory_meter import MemoryMeter
    from vidsieve.harness.benchmark.request_bench import RequestBench
    from vidsieve.harness.model_loading import Loaded


GPU_WARMUP = 1

Step = Callable[[str, int, int], None]
Save = Callable[[dict[str, Any]], None]


class Benchmark:
    """Everything a benchmark needs but the model, checked before that is loaded.

    `notice` is called with sentences for the user, `step` with (what, done, total), `save` with the result so far
    whenever there is more of it.

    Raises:
        UsageError, UnknownNameError, PolicyFileError, MediaError, ModelError: something named is not there.
    """

    def __init__(
        self,
        settings: BenchSettings,
        *,
        notice: Callable[[str], None] = lambda text: None,
        step: Step = lambda what, done, total: None,
        save: Save = lambda result: None,
    ) -> None:
        from vidsieve.harness.model_choice import choose
        from vidsieve.harness.setup import add_plugins

        self._settings, self._notice, self._step, self._save = settings, notice, step, save
        shape = settings.random_weights
        self._shape = None if shape is None else model_shape(shape, settings.layers)
        self._registry: Registry = add_plugins(settings.plugin)
        self._policies = policies_of(settings, self._registry)
        self._choice = None
        if self._shape is None:
            self._choice = choose(settings.model, settings.checkpoint, self._registry)
            if self._choice.note:
                notice(self._choice.note)
        self._videos = [_video(name) for name in settings.video or ()]
        self._workloads: list[tuple[int, RequestBench | None, list[Cell]]] = []
        self._head: dict[str, Any] = {}
        self._complete = False

    def run(self) -> dict[str, Any]:
        """Load the model and measure. Ctrl-C ends it, and what there is by then is returned with `complete` false."""
        from vidsieve.harness.benchmark.memory_meter import open_meter

        counts = self._settings.frame_counts()
        self._workloads = [(frames, None, self._cells()) for frames in counts]
        loaded = self._load()
        meter = open_meter(loaded.model.device)
        self._head = self._described(loaded, meter)
        try:
            for number, frames in enumerate(counts):
                self._workload(number, frames, loaded, meter)
                self._save(self.result())
            self._complete = True
        except KeyboardInterrupt:
            self._notice("stopped: what was measured by now follows")
        finally:
            if meter is not None:
                meter.close()
        return self.result()

    def result(self) -> dict[str, Any]:
        """Return what is known so far, in plain types."""
        workloads = [
            {"frames": frames, **({} if bench is None else _shape_of(bench)), "cells": [c.to_dict() for c in cells]}
            for frames, bench, cells in self._workloads
        ]
        return {"kind": KIND, "format": FORMAT, "complete": self._complete, **self._head, "workloads": workloads}

    def _cells(self) -> list[Cell]:
        return [Cell(UNCOMPRESSED, None, None), *cells_of(self._policies, self._settings.ratios())]

    def _load(self) -> "Loaded":
        """Load or draw the model."""
        if self._shape is not None:
            from vidsieve.harness.benchmark.random_weights import with_random_weights

            return with_random_weights(self._shape, self._settings.loading(), seed=self._settings.seed)
        from vidsieve.harness.model_loading import load

        assert self._choice is not None
        return load(self._choice, self._settings.loading(), self._registry)

    def _described(self, loaded: "Loaded", meter: "MemoryMeter | None") -> dict[str, Any]:
        """Describe machine, versions, model and settings."""
        from vidsieve.harness.model_bench import facts

        model = loaded.choice.name if self._shape is None else self._shape.sentence()
        width, height = self._settings.size()
        shown = ", ".join(str(video.video) for video in self._videos)
        settings = {name: value for name, value in asdict(self._settings).items() if value is not None}
        return {
            "about": facts(loaded, {}) | {"system": platform.platform(terse=True)},
            "model": model,
            "video": shown or sentence(width, height),
            "memory": "not told by this system" if meter is None else meter.how,
            "settings": settings,
        }

    def _examples(self, frames: int, rows: int) -> list[Example]:
        """Make what is asked about: the files, or synthetic videos that differ from row to row."""
        if self._videos:
            return self._videos
        (width, height), seed = self._settings.size(), self._settings.seed
        return [
            Example(
                id=f"synthetic {row}",
                group=f"synthetic {row}",
                question=QUESTION,
                frames=synthetic_frames(frames, width, height, seed=seed + row),
                fps=FPS,
            )
            for row in range(rows)
        ]

    def _workload(self, number: int, frames: int, loaded: "Loaded", meter: "MemoryMeter | None") -> None:
        """Count, then time, all cells of one number of frames."""
        from vidsieve.harness.benchmark.request_bench import RequestBench

        setup = self._settings.setup(frames)
        examples = self._examples(frames, setup.batch_size or 1)
        bench = RequestBench(loaded, setup, "agreement", examples)
        cells = self._workloads[number][2]
        self._workloads[number] = (frames, bench, cells)
        if bench.frames_taken != (frames, frames):
            least, most = bench.frames_taken
            self._notice(f"frames: {frames} asked, the videos give {least} to {most}")
        self._count(bench, cells, meter, frames)
        running = [cell for cell in cells if cell.status == "counted"]
        if not running:
            return
        if self._settings.compile:
            from vidsieve.adapters.adapter import decoder_of

            # one graph for prompts of every length; each policy has its own
            decoder_of(loaded.model).compile(dynamic=True)
        if cells[0].status != "counted":
            bench.reference = running[0].policy
            self._notice(f"frames {frames}: the uncompressed model does not run here, so there are no ratios to it")
        self._time(bench, cells, running, frames)

    def _count(self, bench: "RequestBench", cells: "Sequence[Cell]", meter: "MemoryMeter | None", frames: int) -> None:
        """Run each cell once and count; a cell that fails keeps the reason."""
        from vidsieve.tuner.trial_failure import POLICY_FAULTS, release_memory

        waiting = [cell for cell in cells if cell.status == "waiting"]
        for done, cell in enumerate(waiting):
            self._step(f"count {frames} frames, {cell.name}", done, len(waiting))
            try:
                if cell.policy is not None:
                    bench.check(cell.policy)
                cell.counted = bench.count(cell.policy, meter)
                cell.status = "counted"
            except POLICY_FAULTS as error:
                cell.give_up(error)
                release_memory(error)

    def _time(self, bench: "RequestBench", cells: "Sequence[Cell]", running: Sequence[Cell], frames: int) -> None:
        """Time the running cells in turn; after every turn what they have is in the cells."""
        from vidsieve.framework.policy.policy import Policy
        from vidsieve.tuner.measure.latency import PairedTimer, Side, TimingRules
        from vidsieve.tuner.trial_failure import POLICY_FAULTS

        repeats, gpu = self._settings.repeats, bench.loaded.model.device.type == "cuda"
        # on a CPU the request that was counted has warmed up
        warmup = GPU_WARMUP if gpu or self._settings.compile else 0
        rules = TimingRules(
            warmup=warmup,
            min_pairs=repeats,
            max_pairs=repeats,
            max_seconds=self._settings.seconds,
            half_width_ratio=0.0,
        )
        timer = PairedTimer(bench, "e2e")
        timer.warn = self._notice
        policies = [cell for cell in running if cell.policy is not None]
        sides = [Side(cell.policy) for cell in policies if cell.policy is not None]
        # with nothing else to measure, the empty policy keeps the uncompressed model company
        sides = sides or [Side(Policy(name="none"))]
        turns = timer.turns(sides, rules, POLICY_FAULTS)
        try:
            for done in range(repeats):
                self._step(f"time {frames} frames, turns", done, repeats)
                if next(turns, self) is self:
                    break
                self._keep(bench, cells, policies, sides)
                self._save(self.result())
            for _ in turns:  # of pairs that were measured again
                self._keep(bench, cells, policies, sides)
        except POLICY_FAULTS as error:
            cells[0].give_up(error)
        finally:
            turns.close()  # type: ignore[attr-defined]

    def _keep(
        self, bench: "RequestBench", cells: Sequence[Cell], policies: Sequence[Cell], sides: Sequence[Any]
    ) -> None:
        """Put the timed runs so far into the cells."""
        rows, tokens = int(bench.workload["batch_size"] or 1), bench.max_new_tokens
        beside = bench.reference is None
        for cell, side in zip(policies, sides, strict=False):
            if isinstance(side.result, Exception):
                cell.give_up(side.result)
            elif len(side.pairs):
                cell.timed = timed_facts(side.pairs, rows, tokens, ratios=beside)
                cell.status = "measured"
        if beside and (facts := uncompressed_facts([side.pairs for side in sides], rows, tokens)):
            cells[0].timed, cells[0].status = facts, "measured"


def _shape_of(bench: "RequestBench") -> dict[str, Any]:
    """Describe a workload."""
    least, most = bench.frames_taken
    return {
        "frames_taken": [least, most],
        "grid": {"units": bench.shape.frames, "tokens_per_unit": bench.shape.tokens},
        "batch_size": bench.workload["batch_size"],
        "new_tokens": bench.max_new_tokens,
    }


def _video(name: str) -> Example:
    """Make an example of a user's file. Raises MediaError where there is none."""
    if (fault := path_fault(name)) is not None:
        raise MediaError(f"video {name!r}: {fault}.")
    file = Path(name).expanduser()
    if not file.is_file():
        raise MediaError(f"video {name}: there is no such file.")
    return Example(id=file.name, group=str(file), question=QUESTION, video=file)


def benchmark(settings: BenchSettings, **told: Any) -> dict[str, Any]:
    """Measure policies beside the uncompressed model; in plain types. `told` are `Benchmark`'s callbacks."""
    return Benchmark(settings, **told).run()
