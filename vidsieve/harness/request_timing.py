"""One request, timed: processor outputs on the device to the first token, or from the file to the last one."""

import functools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.framework.report import Report, Stopwatch
from vidsieve.framework.task import Example
from vidsieve.harness.runner import Runner, Runners
from vidsieve.tuner.protocol import Intervention

MOST_CLIPS = 8


class Timer:
    """Times requests of `batch_size` videos over several clips in turn. The wall clock, with the device waited for."""

    def __init__(self, runners: Runners, examples: Sequence[Example], batch_size: int, max_new_tokens: int) -> None:
        self._runners, self._max_new_tokens = runners, max_new_tokens
        self._device, self._model = runners.full.device, runners.full.model
        first = list({example.group: example for example in reversed(examples)}.values())[::-1]
        self.clips = max(1, min(MOST_CLIPS, len(first) // batch_size))
        self._requests = [
            [first[(clip * batch_size + row) % len(first)] for row in range(batch_size)] for clip in range(self.clips)
        ]
        # a smaller input's tensors leave the device with its runner
        self._inputs: WeakKeyDictionary[Runner, dict[int, dict[str, Tensor]]] = WeakKeyDictionary()

    def inputs(self, clip_index: int, intervention: Intervention | None = None) -> dict[str, Tensor]:
        """A clip's inputs, on the device from the first time on."""
        runner = self._runners.of(intervention)
        resident = self._inputs.setdefault(runner, {})
        if clip_index not in resident:
            resident[clip_index] = runner.inputs(self._requests[clip_index])
        return resident[clip_index]

    def frame_counts(self) -> set[int]:
        """How many frames the clips give; a short video gives fewer than were asked for."""
        reader = self._runners.full.reader
        return {len(reader.clip(example).frames) for request in self._requests for example in request}

    def shape(self, clip_index: int) -> Hashable:
        """What decides the sizes of a request: the full input's shapes and grid, which decide a smaller one's."""
        inputs = self.inputs(clip_index)
        grid = inputs.get("video_grid_thw")
        return (
            tuple((n, tuple(t.shape)) for n, t in sorted(inputs.items())),
            str(None if grid is None else grid.tolist()),
        )

    def ttft(self, policy: Intervention | None, clip_index: int) -> dict[str, float]:
        """`ttft_ms` and its parts vision_ms, compress_ms, prefill_ms."""
        runner, inputs = self._runners.of(policy), self.inputs(clip_index, policy)
        with runner.under(policy) as reports, self._vision() as watches:
            start = self._now()
            runner.generate(inputs, 1, min_new_tokens=1)
            total = self._now() - start
        return {"ttft_ms": total} | _parts(total, reports, watches)

    def e2e(self, policy: Intervention | None, clip_index: int) -> dict[str, float]:
        """`e2e_ms` and its parts: video_ms, preprocess_ms, those of the first token, and decode_step_ms."""
        runner, examples, tokens = self._runners.of(policy), self._requests[clip_index], self._max_new_tokens
        first = _FirstToken(self._now)
        with runner.under(policy) as reports, self._vision() as watches:
            start = self._now()
            clips = [runner.reader.clip(example, fresh=True) for example in examples]
            decoded = self._now()
            inputs = runner.on_device(runner.build(examples, clips))
            ready = self._now()
            runner.generate(inputs, tokens, min_new_tokens=tokens, stopping_criteria=[first])
            end = self._now()
        ttft = (first.at_ms or end) - ready
        steps = {"decode_step_ms": (end - ready - ttft) / (tokens - 1)} if tokens > 1 else {}
        read = {"video_ms": decoded - start, "preprocess_ms": ready - decoded}
        return {"e2e_ms": end - start} | read | {"first_token_ms": ttft} | _parts(ttft, reports, watches) | steps

    def _now(self) -> float:
        """Milliseconds, when the device has done all it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() * 1e3

    @contextmanager
    def _vision(self) -> Iterator[list[Stopwatch]]:
        """Watch the vision side (tower and projector) without waiting for it; the model is left as found."""
        base, name = self._model.base_model, f"get_{self._runners.full.loaded.adapter.modality}_features"
        original: Callable[..., Any] = getattr(base, name)
        watches: list[Stopwatch] = []

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with Stopwatch(self._device) as watch:
                output = original(*args, **kwargs)
            watches.append(watch)
            return output

        setattr(base, name, watched)
        try:
            yield watches
        finally:
            delattr(base, name)


class _FirstToken:
    """A stopping rule that never stops and notes when it was first asked: after the first token."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.at_ms: float | None = None

    def __call__(self, input_ids: Int[Tensor, "rows all"], scores: Any, **more: Any) -> Any:
        if self.at_ms is None:
            self.at_ms = self._now()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _parts(total_ms: float, reports: Sequence[Report], watches: Sequence[Stopwatch]) -> dict[str, float]:
    """Vision and compression as they were watched; prefill is what is left of the time to the first token."""
    vision = sum(watch.ms for watch in watches)
    compress = reports[-1].compress_ms if reports else 0.0
    rest = max(0.0, total_ms - vision - compress)
    return {"vision_ms": vision, "compress_ms": compress, "prefill_ms": rest}
