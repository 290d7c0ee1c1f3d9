"""A cache layer for decode: chosen visual entries where attention reads, all of them parked in host memory.

On CUDA the host's copy is pinned, and what comes back is copied on a stream of its own. On the CPU host memory is the
memory there is: entries are then held twice, once parked and once where attention reads.
"""

from functools import cache as cached
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vidsieve.adapters.decoder.slots import Swap
from vidsieve.adapters.transformers_internals import cached_layer, grows_plainly

_SPARE = 64
"""Columns for new tokens that a buffer has at first; it doubles them when they are full."""


class ParkedLayer(DynamicLayer):
    """The keys and values of a layer in decode.

    Its buffers hold `slots` of visual entries, then all other entries of the prompt, then new tokens. `visual` and
    `others` are the columns of the cache that they come from. Its length is that of the cache it stands for; copies of
    it are plain layers with everything in its place.
    """

    keys: Any  # None in no layer of this class
    values: Any

    def __init__(
        self,
        layer: Any,
        prompt: int,
        visual: Int[Tensor, "rows visual"],
        others: Int[Tensor, "rows others"],
        tokens: Int[Tensor, "rows slots"],
    ) -> None:
        """Park what `layer` holds of its first `prompt` columns, with these visual `tokens` in the slots."""
        super().__init__()
        self.is_initialized = True
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.prompt = prompt
        self.visual, self.others = visual.to(self.device), others.to(self.device)
        self.slots, self.new = tokens.shape[1], layer.keys.shape[2] - prompt
        first = self.visual.gather(1, tokens.to(self.device))
        self.keys, self.parked_keys = self._parts(layer.keys, first)
        self.values, self.parked_values = self._parts(layer.values, first)
        self.parked_at = _event(self.device)
        self._coming: dict[int, Any] = {}

    def _parts(self, states: Float[Tensor, "rows heads keys dim"], first: Tensor) -> tuple[Tensor, Tensor]:
        """The buffer of keys or values, and the visual ones among them on the host."""
        rows, heads, _, dim = states.shape
        start = self.slots + self.others.shape[1]
        buffer = states.new_zeros(rows, heads, start + self.new + _SPARE, dim)
        buffer[:, :, : self.slots] = _taken(states, first)
        buffer[:, :, self.slots : start] = _taken(states, self.others)
        buffer[:, :, start : start + self.new] = states[:, :, self.prompt :]
        visual = _taken(states, self.visual)
        return buffer, _pinned(visual) if self.device.type == "cuda" else visual

    @property
    def _start(self) -> int:
        """Where new tokens begin in the buffers."""
        return self.slots + self.others.shape[1]

    # ---------------------------------------------------------------- what a decode step does

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new tokens behind the others; what attention may read is returned."""
        count = key_states.shape[2]
        end = self._start + self.new + count
        if end > self.keys.shape[2]:
            self.keys, self.values = (_longer(one, end + end - self._start) for one in (self.keys, self.values))
        self.keys[:, :, end - count : end] = key_states
        self.values[:, :, end - count : end] = value_states
        self.new += count
        return self.keys[:, :, :end], self.values[:, :, :end]

    def fetch(self, swap: Swap) -> None:
        """Begin to bring the entries of a swap from the host."""
        if id(swap) not in self._coming:
            self._coming[id(swap)] = self._fetched(swap)

    def put(self, swap: Swap) -> None:
        """Put the entries of a swap into their slots."""
        self.fetch(swap)
        keys, values, arrived = self._coming.pop(id(swap))
        if arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrived)
            keys.record_stream(stream)
            values.record_stream(stream)
        slots = swap.slots.to(self.device)
        for buffer, states in ((self.keys, keys), (self.values, values)):
            if len(slots) == 1:
                buffer.index_copy_(2, slots[0], states)
            else:
                buffer.scatter_(2, slots[:, None, :, None].expand(states.shape), states)

    def _fetched(self, swap: Swap) -> tuple[Tensor, Tensor, Any]:
        parked = self.parked_keys, self.parked_values
        if self.device.type != "cuda":
            tokens = swap.tokens.to(self.device)
            keys, values = (_taken(one, tokens) for one in parked)
            return keys, values, None
        self.parked_at.synchronize()  # once: it has long passed in later steps
        tokens, stream = swap.tokens_on_host, _side_stream(self.device)
        keys, values = (_pinned(_taken(one, tokens)) for one in parked)
        with torch.cuda.stream(stream):
            moved = keys.to(self.device, non_blocking=True), values.to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(stream)
        return *moved, arrived

    # ---------------------------------------------------------------- what transformers asks of a layer

    def get_seq_length(self) -> int:
        """The tokens that it stands for."""
        return self.prompt + self.new

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, which must be new ones: so many if negative, else down to so many."""
        left = self.get_seq_length() + tokens_to_remove if tokens_to_remove <= 0 else tokens_to_remove
        assert left >= self.prompt, "only new tokens are cropped while entries are parked"
        self.new = min(self.new, left - self.prompt)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Permute the rows."""
        self._rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._rows(torch.arange(len(self.keys), device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._rows(torch.arange(len(self.keys), device=self.device).repeat_interleave(repeats))

    def _rows(self, index: Tensor) -> None:
        index = index.to(self.device)
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
        self.visual, self.others = self.visual.index_select(0, index), self.others.index_select(0, index)
        if self.parked_at is not None:
            self.parked_at.synchronize()
        away = index.to(self.parked_keys.device)
        for name in ("parked_keys", "parked_values"):
            states = getattr(self, name).index_select(0, away)
            setattr(self, name, _pinned(states) if self.device.type == "cuda" else states)
        self._coming.clear()

    def offload(self) -> None:
        """Stay: what may wait elsewhere does already."""

    def prefetch(self) -> None:
        """Stay."""

    # ---------------------------------------------------------------- back to a plain layer

    def plain(self) -> DynamicLayer:
        """A layer with every entry in its place."""
        layer: Any = DynamicLayer()
        layer.dtype, layer.device, layer.is_initialized = self.dtype, self.device, True
        if self.parked_at is not None:
            self.parked_at.synchronize()
        layer.keys = self._whole(self.keys, self.parked_keys)
        layer.values = self._whole(self.values, self.parked_values)
        return layer

    def _whole(self, buffer: Tensor, parked: Tensor) -> Tensor:
        rows, heads, _, dim = buffer.shape
        whole = buffer.new_empty(rows, heads, self.prompt + self.new, dim)
        others = buffer[:, :, self.slots : self._start]
        for columns, states in ((self.others, others), (self.visual, parked.to(self.device))):
            # columns that fill a row up are named twice, with the same entry
            whole.scatter_(2, columns[:, None, :, None].expand(states.shape), states)
        whole[:, :, self.prompt :] = buffer[:, :, self._start : self._start + self.new]
        return whole

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _same, (self.plain(),)


def unparkable(cache: Any, layer: int) -> str:
    """Why entries of a cache like that of `layer` cannot be parked; empty if they can."""
    found = cached_layer(cache, layer)
    if getattr(cache, "offloading", False):
        return "an offloaded cache moves whole layers itself"
    return "" if grows_plainly(found) else f"a cache layer of type {type(found).__name__} cannot be exchanged"


def unpark(cache: Any) -> None:
    """Make the layers of a cache plain again."""
    for number, layer in enumerate(getattr(cache, "layers", ())):
        if isinstance(layer, ParkedLayer):
            cache.layers[number] = layer.plain()


def _same(layer: DynamicLayer) -> DynamicLayer:
    return layer


def _taken(
    states: Float[Tensor, "rows heads keys dim"], columns: Int[Tensor, "rows taken"]
) -> Float[Tensor, "rows heads taken dim"]:
    """Keys or values at some columns of each row."""
    if len(columns) == 1:
        return states.index_select(2, columns[0])
    return states.gather(2, columns[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def _pinned(states: Tensor) -> Tensor:
    """A copy in pinned host memory, without waiting for it."""
    return torch.empty(states.shape, dtype=states.dtype, pin_memory=True).copy_(states, non_blocking=True)


def _longer(buffer: Tensor, columns: int) -> Tensor:
    """A buffer with room for so many columns."""
    return torch.nn.functional.pad(buffer, (0, 0, 0, columns - buffer.shape[2]))


def _event(device: torch.device) -> Any:
    """A point in the work on a CUDA device; None elsewhere."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


@cached
def _side_stream(device: torch.device) -> Any:
    """The stream on which entries come from the host."""
    return torch.cuda.Stream(device)
