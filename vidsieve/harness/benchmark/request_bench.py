"""`RequestBench`: a workbench whose requests are timed whole, phase by phase, and counted once."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vidsieve.adapters.apply import check_policy
from vidsieve.adapters.uncompiled import uncompiled
from vidsieve.harness.benchmark.cache_bytes import cache_bytes
from vidsieve.harness.benchmark.memory_meter import MemoryMeter
from vidsieve.harness.benchmark.phase_counts import PhaseCounts, flop_counter
from vidsieve.harness.model_bench import Workbench
from vidsieve.harness.model_loading import used_threads
from vidsieve.harness.request_timing import WholeRequest

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.tuner.protocol import Intervention, Metric

PHASES = ("video", "preprocess", "vision", "compress", "prefill", "decode")
FLASH = "flash_attention_2"


class RequestBench(Workbench):
    """`reference` stands in for the uncompressed model where that does not run, such as for lack of memory."""

    reference: "Policy | None" = None

    def check(self, policy: "Policy") -> None:
        """Refuse, before anything runs, what this model cannot carry out. Raises PolicyError."""
        check_policy(self.loaded.adapter, policy)

    def timed(self, policy: "Intervention | None", clip_index: int, metric: "Metric") -> Mapping[str, float]:
        """Time one whole request, whatever the metric: e2e_ms, ttft_ms, tpot_ms, and each phase with other_ms."""
        with used_threads(self.loaded.threads):
            found = self._timer.whole(self.reference if policy is None else policy, clip_index)
        parts = _parts(found)
        return parts if self._clocks is None else parts | self._watched(self._clocks)

    def count(self, policy: "Policy | None", meter: MemoryMeter | None) -> dict[str, Any]:
        """Run one request and count visual tokens, operations and bytes; not compiled, and not for its time."""
        with ExitStack() as stack:
            stack.enter_context(used_threads(self.loaded.threads))
            stack.enter_context(uncompiled)
            if self.loaded.model.config._attn_implementation == FLASH:
                # its kernel is hidden from the counter: operations are those of the same attention by torch's own
                self.loaded.model.set_attn_implementation("sdpa")
                stack.callback(self.loaded.model.set_attn_implementation, FLASH)
            counter = stack.enter_context(flop_counter())
            counts = PhaseCounts(counter, meter)
            found = self._timer.whole(policy, 0, counts)
            counts.close()
        return self._counted(found, counts, meter)

    def _counted(self, found: WholeRequest, counts: PhaseCounts, meter: MemoryMeter | None) -> dict[str, Any]:
        model: Any = self.loaded.model
        total, resident = cache_bytes(getattr(found.output, "past_key_values", None), model.device)
        layouts = self.loaded.adapter.layouts(model.config, found.inputs)
        tokens = sum(layout.placeholders - (layout.rows - layout.visual) for layout in layouts)
        embedding = model.get_input_embeddings().weight
        report = found.report
        memory = None
        if meter is not None:
            memory = {
                "held_bytes": counts.held_bytes,
                "peak_bytes": max(counts.peak_bytes.values()),
                "peak_by_phase_bytes": dict(counts.peak_bytes),
                "compress_added_bytes": counts.compress_added_bytes if report is not None else 0,
                "features_bytes": tokens * embedding.shape[1] * embedding.element_size(),
            }
        return {
            "visual_tokens": tokens if report is None else report.kept_tokens,
            "uncompressed_tokens": tokens,
            "retention_ratio": 1.0 if report is None else report.attained_ratio,
            "kv_ratio": None if report is None else report.kv_ratio,
            "kv_bytes": total,
            "kv_resident_bytes": resident,
            "visual_kv_resident_bytes": getattr(report, "kv_resident_bytes", None),
            "flops": {**{phase: counts.flops[phase] for phase in PHASES[2:]}, "total": sum(counts.flops.values())},
            "memory": memory,
            "notes": [] if report is None else list(report.notes),
        }


def _parts(found: WholeRequest) -> dict[str, float]:
    """Put a request's times under the names of measures; `other_ms` is what no phase took."""
    named = {f"{phase}_ms": found.phases_ms.get(phase, 0.0) for phase in PHASES}
    whole = {"e2e_ms": found.e2e_ms, "ttft_ms": found.ttft_ms}
    step = {} if found.tpot_ms is None else {"tpot_ms": found.tpot_ms}
    return whole | step | named | {"other_ms": found.e2e_ms - sum(named.values())}
