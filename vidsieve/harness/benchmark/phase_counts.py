"""Count, for one request, what each phase computes (floating-point operations) and how much memory it takes."""

from collections import defaultdict
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vidsieve.framework.report import Stopwatch
from vidsieve.harness.benchmark.memory_meter import MemoryMeter

OUTSIDE = "other"


def flop_counter() -> FlopCounterMode:
    """Make torch's counter; it lacks the attention kernel of CPUs, which computes what the GPU's does."""
    aten: Any = torch.ops.aten
    kernel = getattr(aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    mapping = {} if kernel is None or kernel in flop_registry else {kernel: _cpu_attention}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Count by torch's own formula for the kernel of GPUs; arguments are shapes."""
    formula: Any = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
    return int(formula(query, key, value, out_val=None))


class PhaseCounts:
    """A `PhaseListener`. What a phase within another does is counted with the inner one alone.

    `flops` and `peak_bytes` are by phase. `held_bytes` is what was in use before; `compress_added_bytes` the most that
    deciding and gathering took beyond what the vision side left.
    """

    def __init__(self, counter: FlopCounterMode, meter: MemoryMeter | None) -> None:
        self._counter, self._meter = counter, meter
        self._open: list[tuple[str, int]] = []
        self._counted = 0
        self._after_vision: int | None = None
        self.flops: defaultdict[str, int] = defaultdict(int)
        self.peak_bytes: defaultdict[str, int] = defaultdict(int)
        self.compress_added_bytes = 0
        self.held_bytes = 0
        if meter is not None:
            meter.trim()
            meter.restart()
            self.held_bytes = meter.held_bytes()

    def begin(self, watch: Stopwatch) -> None:
        """Book what was done up to here."""
        self._book()
        self._open.append((watch.phase, 0 if self._meter is None else self._meter.held_bytes()))

    def end(self, watch: Stopwatch) -> None:
        """Book what the phase did."""
        self._book()
        self._open.pop()
        if watch.phase == "vision" and self._meter is not None:
            self._meter.trim()
            self._meter.restart()
            self._after_vision = self._meter.held_bytes()

    def close(self) -> None:
        """Book what was done behind the last phase."""
        self._book()

    def _book(self) -> None:
        phase, held = self._open[-1] if self._open else (OUTSIDE, 0)
        counted = self._counter.get_total_flops()
        self.flops[phase] += counted - self._counted
        self._counted = counted
        if self._meter is None:
            return
        peak = self._meter.peak_bytes()
        self._meter.restart()
        self.peak_bytes[phase] = max(self.peak_bytes[phase], peak)
        if phase == "compress":
            base = held if self._after_vision is None else self._after_vision
            self.compress_added_bytes = max(self.compress_added_bytes, peak - base)
