"""`Workbench`: a loaded model with a workload and a task, as the tuner's `Bench`."""

import platform
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vidsieve import __version__
from vidsieve.framework.errors import DataError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.report import Report
from vidsieve.framework.task import SPLITS, Example, Outcome, Task
from vidsieve.harness.data.clip_reader import ClipReader
from vidsieve.harness.encoding.feature_store import FeatureStore
from vidsieve.harness.example_scoring import Scorer
from vidsieve.harness.model_loading import Loaded, device_name, fingerprint, used_threads
from vidsieve.harness.request_timing import MOST_CLIPS, NEIGHBOUR, Clocks, Timer
from vidsieve.harness.runner import Runner, Runners
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.tuner.protocol import EncodingWork, Intervention, Metric

BUNDLED_BATCH = 16
MOST_ROUNDS = 128


class Written(NamedTuple):
    """What a model wrote: the answer, the tokens it is made of as text, and what the policy did (None without one)."""

    answer: str
    words: tuple[str, ...]
    report: Report | None


class Workbench:
    """Implements the tuner's `Bench`. `clip_examples` are what latency is measured on; the first gives the shape.

    `notices` fills with what the user should know, in words. `frames_taken` is the least and the most that these
    clips give: a short video gives fewer frames than `frames`. Scoring encodes each clip once; timing knows no store.
    """

    def __init__(self, loaded: Loaded, setup: Setup, metric: str, clip_examples: Sequence[Example]) -> None:
        bundled = loaded.choice.bundled
        reader = ClipReader.of(setup, loaded.choice)
        self.max_new_tokens = setup.max_new_tokens or (4 if bundled else 32)
        rows = setup.batch_size or 1
        self.workload = {
            "frames": reader.frames,
            "fps": reader.fps,
            "max_pixels": setup.max_pixels,
            "batch_size": rows,
            "max_new_tokens": self.max_new_tokens,
        }
        self.loaded = loaded
        self.runner = Runner(loaded, reader)
        runners = Runners(self.runner, self._frame_pixels)
        self._store = FeatureStore.of(setup, loaded)
        scored = runners
        if self._store is not None:
            scored = Runners(Runner(loaded, reader, store=self._store), self._frame_pixels)
        score_rows = max(rows, BUNDLED_BATCH) if bundled else rows
        share = not setup.whole_prompts
        self._scorer = Scorer(scored, metric, score_rows, self.max_new_tokens, share_prefix=share)
        self._clocks = Clocks.of(self.runner.device)
        self.notices: list[str] = []
        self._timer = Timer(runners, clip_examples, rows, self.max_new_tokens)
        self.clips = self._timer.clips
        self.offers: frozenset[str] = loaded.adapter.offers
        self.hooks: frozenset[str] = frozenset(loaded.adapter.runs)
        self.smaller: frozenset[str] = runners.kinds
        self.shape = self._shape()
        counts = self._timer.frame_counts()
        self.frames_taken = (min(counts), max(counts))

    @classmethod
    def of_task(cls, loaded: Loaded, setup: Setup, task: Task, *, seed: int = 0) -> "Workbench":
        """Make a bench that measures latency on the task's first videos."""
        return cls(loaded, setup, task.metric, timed_examples(task, setup, seed))

    def _shape(self) -> VideoShape:
        layout = self.loaded.adapter.layouts(self.loaded.model.config, self._timer.inputs(0))[0]
        layers = self.loaded.model.config.get_text_config().num_hidden_layers
        return VideoShape(layout.frames, layout.tokens, layers)

    def _frame_pixels(self) -> int:
        """Count the pixels of the largest frame of the clips that latency is measured on, as the model sees it."""
        layouts = self.loaded.adapter.layouts
        found = [
            video for clip in range(self.clips) for video in layouts(self.loaded.model.config, self._timer.inputs(clip))
        ]
        token_pixels = self.runner.processor.token_pixels
        assert token_pixels is not None
        return token_pixels * max(height * width for _, height, width in (video.grid for video in found))

    @property
    def encoding(self) -> "EncodingWork | None":
        """The clips encoded and not encoded for scoring so far; None where each is encoded every time."""
        return None if self._store is None else self._store.work

    def renew(self) -> bool:
        """Do nothing: the model stays in this process."""
        return False

    def describe(self) -> Mapping[str, str]:
        """Describe model, machine and workload for provenance."""
        return facts(self.loaded, self.workload)

    def clip_shape(self, clip_index: int) -> Hashable:
        """Return the shape of a clip; clips of equal shape share their warm-up."""
        return self._timer.shape(clip_index)

    def timed(self, policy: "Intervention | None", clip_index: int, metric: "Metric") -> Mapping[str, float]:
        """Time one request in milliseconds, by parts; on a GPU with its clock right after."""
        run = self._timer.ttft if metric == "ttft" else self._timer.e2e
        with used_threads(self.loaded.threads):
            parts = run(policy, clip_index)
        return parts if self._clocks is None else parts | self._watched(self._clocks)

    def _watched(self, clocks: Clocks) -> dict[str, float]:
        """Return `clock_ratio` where it is known; neighbours go into the notices, once."""
        ratio = clocks.ratio()
        if NEIGHBOUR not in self.notices and (neighbours := clocks.neighbours()):
            self.notices.append(neighbours)
        return {} if ratio is None else {"clock_ratio": ratio}

    def answer(self, policy: Policy | None, example: Example) -> tuple[str, Report | None]:
        """Return what the model writes about one example, and the report of what the policy did."""
        written = self.written(policy, example)
        return written.answer, written.report

    def written(self, policy: Policy | None, example: Example) -> "Written":
        """Let the model write about one example."""
        inputs = self.runner.inputs([example])
        with used_threads(self.loaded.threads), self.runner.under(policy) as reports:
            sequences = self.runner.generate(inputs, self.max_new_tokens).sequences
        new = sequences[0, inputs["input_ids"].shape[1] :].tolist()
        decode = self.runner.processor.tokenizer.decode
        words = tuple("(end)" if token == self.runner.end_id else str(decode([token])) for token in new)
        answer = self.runner.answers(inputs, sequences)[0]
        return Written(answer, words, reports[-1] if reports else None)

    def score(self, policy: "Intervention | None", examples: Sequence[Example]) -> Iterator[Outcome]:
        """Yield one outcome for each example, in order."""
        outcomes = self._scorer.score(policy, examples)
        while True:
            # given back before each outcome goes out: what the caller does meanwhile is not ours
            with used_threads(self.loaded.threads):
                outcome = next(outcomes, None)
            if outcome is None:
                break
            yield outcome
        fault = None if self._store is None else self._store.fault
        if fault is not None and fault not in self.notices:
            self.notices.append(fault)


def timed_examples(task: Task, setup: Setup, seed: int = 0) -> list[Example]:
    """Choose what latency is measured on: examples of a few different videos, from the first split that has any.

    Raises:
        DataError: the task has no example at all.
    """
    videos = MOST_CLIPS * (setup.batch_size or 1)
    for split in SPLITS:
        count = videos
        while True:
            found = list(task.examples(split, count, seed=seed))
            if len({e.group for e in found}) >= videos or len(found) < count or count >= MOST_ROUNDS * videos:
                break
            count *= 2
        if found:
            return found
    raise DataError(f"data {task.name!r}: holds no example.")


def facts(loaded: Loaded, workload: Mapping[str, object]) -> dict[str, str]:
    """Describe model, machine, versions and `workload`; no paths. Two equal ones must give equal accuracies."""
    import torch
    import transformers

    choice, model = loaded.choice, loaded.model
    revision = choice.revision or (fingerprint(choice.folder) if choice.folder else "in memory")
    described = {
        "model": loaded.adapter.family,
        "checkpoint": choice.name,
        "revision": revision,
        "bundled": "yes" if loaded.is_bundled else "no",
        "device": str(model.device),
        "device_name": device_name(str(model.device)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn": str(model.config._attn_implementation),
        "threads": str(loaded.threads or torch.get_num_threads()),
        "preprocessing": loaded.processor.kind,
        "vidsieve": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    # plain str, for YAML: torch's version is a subclass of it
    return {name: str(value) for name, value in (described | dict(workload)).items() if value is not None}
