"""What KV stages did, written into the report of a call."""

from typing import Any

from vidsieve.adapters.decoder.decode_kv import DecodeKV
from vidsieve.adapters.decoder.layer_pruning import LayerPrune
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report


def report_kv(report: Report, policy: Policy, decode: DecodeKV | None, prune: LayerPrune | None) -> None:
    """Write which KV stages ran, how much of the visual KV was read, and what it takes."""
    if decode is not None:
        report.notes = (*report.notes, *decode.notes)
    read = None if decode is None else decode.read_ratio
    evicted = {} if prune is None else prune.eviction.evicted
    ran = set() if read is None else {bound.label for bound in policy.decode_stages}
    ran |= {bound.label for bound in policy.evict_stages} if evicted else set()
    if not ran:
        return
    report.not_run = tuple(label for label in report.not_run if label not in ran)
    if read is None:
        assert prune is not None
        held, cache = prune.held_entries, prune.cache
        resident = held
    else:
        assert decode is not None
        held, resident, cache = decode.held_entries, decode.resident_entries, decode.cache
    offered = [count + evicted.get(layer, 0) for layer, count in enumerate(held)]
    whole = sum(offered)
    report.kv_ratio = (1.0 if read is None else read) * (sum(held) / whole if whole else 1.0)
    report.kv_full_bytes = _bytes(cache, offered)
    report.kv_resident_bytes = _bytes(cache, resident)


def _bytes(cache: Any, entries: list[int]) -> int:
    """Memory of so many entries of each layer; a layer without keys and values holds none."""
    total = 0
    for layer, count in zip(cache.layers, entries, strict=False):
        for states in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            total += 0 if states is None else count * states.shape[1] * states.shape[3] * states.element_size()
    return total
