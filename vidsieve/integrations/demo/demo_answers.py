"""One clip and one question, answered with all visual tokens and under a policy: what the page shows."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from vidsieve.bundled.unknown_words import unknown_words_warning
from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.report import Report
from vidsieve.harness.data.user_data import OneVideo
from vidsieve.harness.evaluation import answer_both
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_loading import Loaded
from vidsieve.harness.setup import Setup
from vidsieve.integrations.demo.kept_overlay import kept_overlay

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry
    from vidsieve.framework.task import Example

TIMED_REQUESTS = 3
MOST_PICTURES = 24
SAMPLE_CLIPS = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """`rows` of a table: what is told, of all tokens, of the policy; `pictures` with captions; `notes` to read."""

    rows: list[list[str]]
    pictures: list[tuple[UInt8[Tensor, "height width 3"], str]]
    notes: list[str]


@dataclass(eq=False)
class SideBySide:
    """Answers questions about clips with one loaded model; calls from several threads wait for one another."""

    loaded: Loaded
    setup: Setup
    registry: "Registry"
    _one_at_a_time: Lock = field(default_factory=Lock, init=False, repr=False)

    def policies(self) -> list[str]:
        """Name the published policies that remove something."""
        return sorted(name for name in self.registry.policies if name != "none")

    def compare(self, video: str | None, question: str, policy_name: str, retention_ratio: float) -> Comparison:
        """Answer `question` about the file `video` with and without the policy, and time a few requests of each.

        Raises:
            UsageError: no video, or no question.
            VidsieveError: a file that cannot be read, or a policy that does not reach the ratio or not run here.
        """
        if not video:
            raise UsageError("demo: there is no clip yet; upload one, or take an example.")
        if not question.strip():
            raise UsageError("demo: there is no question yet; ask one about the clip.")
        policy = load_policy(policy_name, retention_ratio=retention_ratio, registry=self.registry)
        task = OneVideo.of_file(video, question)
        with self._one_at_a_time:
            bench = Workbench.of_task(self.loaded, self.setup, task)
            told, report = answer_both(bench, policy, task.example, requests=TIMED_REQUESTS)
            pictures = _pictures(bench, task.example, report)
        bundled = self.loaded.choice.bundled
        warning = None if bundled is None else unknown_words_warning(question, bundled)
        return Comparison(rows=_rows(told), pictures=pictures, notes=[*filter(None, [warning]), *_notes(report)])


def _rows(told: dict[str, Any]) -> list[list[str]]:
    sides = (told["uncompressed"], told["compressed"])
    parts = ("ttft_ms", "vision_ms", "compress_ms", "prefill_ms")
    names = ("ms to the first token", "of it the vision tower", "of it the policy", "of it prefill")
    rows = [["answer", *(side["answer"] for side in sides)]]
    rows.append(["visual tokens in the prompt", *(str(side["visual_tokens"]) for side in sides)])
    rows += [[name, *(f"{side[part]:.1f}" for side in sides)] for name, part in zip(names, parts, strict=True)]
    return [*rows, ["times as fast", "1", f"{told['speedup']:.2f}"]]


def _notes(report: Report) -> list[str]:
    inside = "" if report.layer_ratio is None else f", {report.layer_ratio:.3f} as a mean over the layers"
    kept = (
        f"{report.policy_name}: {report.kept_tokens} of {report.baseline_tokens} visual tokens in the prompt{inside}."
    )
    nothing = ["Nothing of this clip was removed."] if report.attained_ratio >= 1 else []
    return [kept, *nothing, *report.notes]


def _pictures(
    bench: Workbench, example: "Example", report: Report
) -> list[tuple[UInt8[Tensor, "height width 3"], str]]:
    """Draw at most `MOST_PICTURES` units, evenly spread."""
    clip, keep = bench.runner.reader.clip(example), report.keeps[0]
    layout = bench.loaded.adapter.layouts(bench.loaded.model.config, bench.runner.inputs([example]))[0]
    _, rows, columns = layout.grid
    drawn = kept_overlay(clip.frames, keep, rows, columns)
    chosen = torch.linspace(0, len(keep) - 1, min(len(keep), MOST_PICTURES)).round().long().tolist()
    seconds, counts = clip.timestamps_s, report.per_frame[0]
    first = [unit * len(clip.frames) // len(keep) for unit in range(len(keep))]
    return [(drawn[unit], f"{seconds[first[unit]]:.1f} s: {counts[unit]} of {layout.tokens}") for unit in chosen]


def samples(loaded: Loaded, folder: Path) -> list[list[str]]:
    """Write a few clips that a bundled model was taught to read into `folder`: file and question of each.

    Empty for other models.
    """
    bundled = loaded.choice.bundled
    if bundled is None:
        return []
    from vidsieve.bundled.bundled_task import BundledTask, write_dataset
    from vidsieve.media import write_video

    task = BundledTask(shape=bundled.shape)
    examples = write_dataset(task, "heldout", SAMPLE_CLIPS * len(bundled.shape.kinds), folder, write_video=write_video)
    by_clip = {example.group: example for example in reversed(examples)}
    return [[str(example.video), example.question] for example in by_clip.values()]
