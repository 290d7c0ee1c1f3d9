"""Time one request, from processor outputs on the device or from the file, and read the GPU's clock after it."""

import functools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.framework.phases import PhaseListener, listening
from vidsieve.framework.report import Report, Stopwatch
from vidsieve.framework.task import Example
from vidsieve.harness.phase_times import PhaseTimes
from vidsieve.harness.runner import Runner, Runners
from vidsieve.tuner.protocol import Intervention

CPU = torch.device("cpu")
MOST_CLIPS = 8
NEIGHBOUR = "another process computes on the same GPU: timings are noisier, and slower than on an idle one"


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
        """Return a clip's inputs, on the device from the first time on."""
        runner = self._runners.of(intervention)
        resident = self._inputs.setdefault(runner, {})
        if clip_index not in resident:
            resident[clip_index] = runner.inputs(self._requests[clip_index])
        return resident[clip_index]

    def frame_counts(self) -> set[int]:
        """Count the frames that the clips give; a short video gives fewer than `frames`."""
        reader = self._runners.full.reader
        return {len(reader.clip(example).frames) for request in self._requests for example in request}

    def shape(self, clip_index: int) -> Hashable:
        """Return what decides a request's sizes: the full input's shapes and grid, which decide a smaller one's."""
        inputs = self.inputs(clip_index)
        grid = inputs.get("video_grid_thw")
        return (
            tuple((n, tuple(t.shape)) for n, t in sorted(inputs.items())),
            str(None if grid is None else grid.tolist()),
        )

    def ttft(self, policy: Intervention | None, clip_index: int) -> dict[str, float]:
        """Measure `ttft_ms` and its parts vision_ms, compress_ms, prefill_ms."""
        runner, inputs = self._runners.of(policy), self.inputs(clip_index, policy)
        with runner.under(policy) as reports, self._vision() as watches:
            start = self._now()
            runner.generate(inputs, 1, min_new_tokens=1)
            total = self._now() - start
        return {"ttft_ms": total} | _parts(total, reports, watches)

    def e2e(self, policy: Intervention | None, clip_index: int) -> dict[str, float]:
        """Measure `e2e_ms` and its parts: video_ms, preprocess_ms, those of the first token, and decode_step_ms."""
        runner, examples, tokens = self._runners.of(policy), self._requests[clip_index], self._max_new_tokens
        first = FirstToken(self._now)
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

    def whole(
        self, policy: Intervention | None, clip_index: int, listener: PhaseListener | None = None
    ) -> "WholeRequest":
        """Run one request from the file to the last token, with every phase told to `listener`.

        Phases: video, preprocess, vision, compress, prefill (the first forward of the model) and decode (the others).
        """
        runner, examples, tokens = self._runners.of(policy), self._requests[clip_index], self._max_new_tokens
        first, times = FirstToken(self._now), PhaseTimes()
        with (
            runner.under(policy) as reports,
            self._vision(),
            self._forwards(),
            listening(times if listener is None else listener),
        ):
            start = self._now()
            with Stopwatch(CPU, "video"):
                clips = [runner.reader.clip(example, fresh=True) for example in examples]
            with Stopwatch(CPU, "preprocess"):
                inputs = runner.on_device(runner.build(examples, clips))
                ready = self._now()
            output = runner.generate(inputs, tokens, min_new_tokens=tokens, stopping_criteria=[first])
            end = self._now()
        return WholeRequest(
            e2e_ms=end - start,
            ttft_ms=(first.at_ms or end) - ready,
            tpot_ms=(end - (first.at_ms or end)) / (tokens - 1) if tokens > 1 else None,
            phases_ms=times.ms(),
            inputs=inputs,
            output=output,
            report=reports[-1] if reports else None,
        )

    def _now(self) -> float:
        return clock_ms(self._device)

    @contextmanager
    def _vision(self) -> Iterator[list[Stopwatch]]:
        """Watch the vision side (tower and projector) without waiting for it; the model is left as found."""
        base, name = self._model.base_model, f"get_{self._runners.full.loaded.adapter.modality}_features"
        original: Callable[..., Any] = getattr(base, name)
        watches: list[Stopwatch] = []

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with Stopwatch(self._device, "vision") as watch:
                output = original(*args, **kwargs)
            watches.append(watch)
            return output

        setattr(base, name, watched)
        try:
            yield watches
        finally:
            delattr(base, name)

    @contextmanager
    def _forwards(self) -> Iterator[None]:
        """Watch each forward of the model: the first is the prefill, the others are decode steps."""
        watches: list[Stopwatch] = []

        def before(module: Any, args: Any) -> None:
            watches.append(Stopwatch(self._device, "decode" if watches else "prefill"))
            watches[-1].__enter__()

        def after(module: Any, args: Any, output: Any) -> None:
            watches[-1].__exit__()

        hooks = [self._model.register_forward_pre_hook(before), self._model.register_forward_hook(after)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeRequest:
    """What one request took, in milliseconds, and what came of it. `tpot_ms` is None for a single token."""

    e2e_ms: float
    ttft_ms: float
    tpot_ms: float | None
    phases_ms: dict[str, float]
    inputs: dict[str, Any]
    output: Any
    report: Report | None


def clock_ms(device: torch.device) -> float:
    """Read the clock in milliseconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3


class FirstToken:
    """A stopping rule that never stops and notes when it was first called: after the first token.

    `now` reads the clock, in milliseconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.at_ms: float | None = None

    def __call__(self, input_ids: Int[Tensor, "rows all"], scores: Any, **more: Any) -> Any:
        if self.at_ms is None:
            self.at_ms = self._now()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _parts(total_ms: float, reports: Sequence[Report], watches: Sequence[Stopwatch]) -> dict[str, float]:
    """Split the time: vision and compression as measured; prefill is what is left of the time to the first token."""
    vision = sum(watch.ms for watch in watches)
    compress = reports[-1].compress_ms if reports else 0.0
    rest = max(0.0, total_ms - vision - compress)
    return {"vision_ms": vision, "compress_ms": compress, "prefill_ms": rest}


class Clocks:
    """One CUDA device as NVML (nvidia-ml-py) sees it. What the driver does not tell, or not to us, is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._nominal_mhz = self._nominal()

    @classmethod
    def of(cls, device: Any) -> "Clocks | None":
        """Open the clocks of a torch device; None without a GPU, NVML, or permission to read it."""
        if device.type != "cuda":
            return None
        with suppress(Exception):  # no module, no driver, no such device: clocks are a help and never a fault
            import pynvml
            import torch

            pynvml.nvmlInit()
            return cls(pynvml, _handle(pynvml, torch.cuda.get_device_properties(device)))
        return None

    def ratio(self) -> float | None:
        """Read the SM clock now ÷ the nominal one."""
        with suppress(Exception):
            now = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
            return now / self._nominal_mhz if self._nominal_mhz else None
        return None

    def neighbours(self) -> str | None:
        """Return a warning if another process computes on the GPU."""
        with suppress(Exception):
            running = {p.pid for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
            # the model is on this GPU, so one entry is ours; in a container perhaps under a number of the host's
            return NEIGHBOUR if len(running) > 1 else None
        return None

    def _nominal(self) -> float | None:
        """Read the clock that applications get by default, in MHz, else the highest."""
        for ask in ("nvmlDeviceGetDefaultApplicationsClock", "nvmlDeviceGetMaxClockInfo"):
            with suppress(Exception):
                mhz = getattr(self._nvml, ask)(self._handle, self._nvml.NVML_CLOCK_SM)
                if mhz > 0:
                    return float(mhz)
        return None


def _handle(nvml: Any, properties: Any) -> Any:
    """Find the device by what it is and not by its number: CUDA_VISIBLE_DEVICES renumbers for CUDA and not for NVML."""
    uuid = str(getattr(properties, "uuid", ""))
    if uuid:
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(name)
    place = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
    return nvml.nvmlDeviceGetHandleByPciBusId("{:08X}:{:02X}:{:02X}.0".format(*place))
