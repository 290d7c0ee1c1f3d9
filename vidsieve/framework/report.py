"""What a policy did: filled without reading anything back from the device; read-backs happen when looked at."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vidsieve.framework.phases import current_listener
from vidsieve.framework.trace import VideoTrace


class Stopwatch:
    """Milliseconds of a stretch of work, without a device sync: CUDA events there, the wall clock elsewhere.

    `phase` says what is done: by default deciding and gathering. A `PhaseListener` is told of it.
    """

    def __init__(self, device: torch.device, phase: str = "compress") -> None:
        self.phase = phase
        self._cuda = device.type == "cuda"
        self._start: Any = None
        self._end: Any = None

    def __enter__(self) -> "Stopwatch":
        listener = current_listener()
        if listener is not None:
            listener.begin(self)
        self._start = self._mark()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end = self._mark()
        listener = current_listener()
        if listener is not None:
            listener.end(self)

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def ms(self) -> float:
        """Elapsed milliseconds; on CUDA this waits for the work to end."""
        if self._cuda:
            self._end.synchronize()
            return float(self._start.elapsed_time(self._end))
        return (self._end - self._start) * 1e3


@dataclass(eq=False, kw_only=True)
class Report:
    """What one policy did to the videos of one request.

    `keeps` holds one mask of kept visual tokens per video (axes frames and tokens; for merges the targets).
    `baselines` is how many visual tokens each video has uncompressed: fewer than places in its mask where the model's
    own processor left some out. Structural tokens (newlines, timestamps, vision start and end) count nowhere. Ratios
    are fractions kept.
    `kv_ratio` is the mean share of visual KV entries attended to over decode steps and decoder layers, or None when
    no KV stage ran; entries that left the cache for good count as not attended to. `kv_full_bytes` is what the keys and
    values of all visual entries take that came to the cache, over layers and rows, and `kv_resident_bytes` what those
    take that stay where the decode steps attend from. `layer_tokens` are the visual tokens that entered each decoder
    layer, one tuple a video, empty when no layer stage ran; `layer_ratio` is their mean over layers divided by the
    baseline. `traces` refers to what the stages decided, one a video, for pictures. In a block of `applied` the newest
    report alone has them, so that a long block holds no more memory.
    """

    policy_name: str
    policy_hash: str
    requested_ratio: float | None
    keeps: tuple[Bool[Tensor, "_ _"], ...] = ()  # videos may differ in shape
    baselines: tuple[int, ...] = ()
    not_run: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stopwatches: tuple[Stopwatch, ...] = ()
    kv_ratio: float | None = None
    kv_full_bytes: int | None = None
    kv_resident_bytes: int | None = None
    layer_ratio: float | None = None
    layer_tokens: tuple[tuple[int, ...], ...] = ()
    traces: tuple[VideoTrace, ...] = field(default=(), repr=False)

    @classmethod
    def combine(cls, reports: Sequence["Report"]) -> "Report":
        """One report over several videos of the same policy, in order."""
        first = reports[0]
        notes = tuple(dict.fromkeys(note for report in reports for note in report.notes))
        return cls(
            policy_name=first.policy_name,
            policy_hash=first.policy_hash,
            requested_ratio=first.requested_ratio,
            keeps=tuple(keep for report in reports for keep in report.keeps),
            baselines=tuple(count for report in reports for count in report.baselines),
            not_run=tuple(dict.fromkeys(label for report in reports for label in report.not_run)),
            notes=notes,
            stopwatches=tuple(watch for report in reports for watch in report.stopwatches),
            kv_ratio=_mean(reports, [report.kv_ratio for report in reports]),
            kv_full_bytes=_sum([report.kv_full_bytes for report in reports]),
            kv_resident_bytes=_sum([report.kv_resident_bytes for report in reports]),
            layer_ratio=_mean(reports, [report.layer_ratio for report in reports]),
            layer_tokens=tuple(counts for report in reports for counts in report.layer_tokens),
            traces=tuple(trace for report in reports for trace in report.traces),
        )

    @property
    def baseline_tokens(self) -> int:
        """Visual tokens of the uncompressed model."""
        known = len(self.baselines) == len(self.keeps)
        return sum(self.baselines) if known else sum(keep.numel() for keep in self.keeps)

    @property
    def kept_tokens(self) -> int:
        """Visual tokens the language model saw."""
        return sum(int(keep.sum()) for keep in self.keeps)

    @property
    def attained_ratio(self) -> float:
        """Kept over baseline; 1.0 when there was no video. With in-LLM pruning the mean over layers."""
        return self.prompt_ratio if self.layer_ratio is None else self.layer_ratio

    @property
    def prompt_ratio(self) -> float:
        """Visual tokens in the prompt, before any pruning inside the decoder, over baseline."""
        return self.kept_tokens / self.baseline_tokens if self.baseline_tokens else 1.0

    @property
    def per_frame(self) -> tuple[tuple[int, ...], ...]:
        """Kept tokens of each frame, one tuple a video."""
        return tuple(tuple(keep.sum(dim=1).tolist()) for keep in self.keeps)

    @property
    def kept(self) -> tuple[list[tuple[int, int]], ...]:
        """(frame, token) of every kept visual token, one list a video."""
        return tuple([(int(f), int(t)) for f, t in keep.nonzero().tolist()] for keep in self.keeps)

    @property
    def compress_ms(self) -> float:
        """Milliseconds spent deciding and gathering, all videos together."""
        return sum(watch.ms for watch in self.stopwatches)

    def show(self, frames: Any = None, **options: Any) -> Any:
        """Draw which tokens were kept, over `frames` where they are given: see `vidsieve.show`, which this calls.

        In a notebook the result shows itself; `.write("kept.html")` writes it (.png and .mp4 too).

        Raises:
            UsageError: as `vidsieve.show`.
        """
        # through the package's own door: what draws stands above this room
        import vidsieve

        return vidsieve.show(self, frames, **options)

    def _repr_html_(self) -> str | None:
        """What a notebook shows of a report of a call with a video."""
        html: str | None = self.show()._repr_html_() if self.keeps else None
        return html

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text, ready for JSON."""
        return {
            "policy": self.policy_name,
            "policy_hash": self.policy_hash,
            "requested_ratio": self.requested_ratio,
            "attained_ratio": self.attained_ratio,
            "baseline_tokens": self.baseline_tokens,
            "kept_tokens": self.kept_tokens,
            "per_frame": [list(frames) for frames in self.per_frame],
            "kv_ratio": self.kv_ratio,
            "kv_full_bytes": self.kv_full_bytes,
            "kv_resident_bytes": self.kv_resident_bytes,
            "prompt_ratio": self.prompt_ratio,
            "layer_ratio": self.layer_ratio,
            "layer_tokens": [list(counts) for counts in self.layer_tokens],
            "not_run": list(self.not_run),
            "notes": list(self.notes),
            "compress_ms": self.compress_ms,
        }


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum of what was counted; None where nothing was."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _mean(reports: Sequence[Report], ratios: Sequence[float | None]) -> float | None:
    """The mean of ratios by baseline tokens; a video for which none was measured counts as whole."""
    total = sum(report.baseline_tokens for report in reports)
    if total == 0 or all(ratio is None for ratio in ratios):
        return None
    whole = [1.0 if ratio is None else ratio for ratio in ratios]
    return sum(report.baseline_tokens * ratio for report, ratio in zip(reports, whole, strict=True)) / total
