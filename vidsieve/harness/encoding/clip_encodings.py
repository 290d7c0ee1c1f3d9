"""`ClipEncodings`: model inputs with features in place of pixels, each clip read and encoded once."""

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.adapters.vision.encoded_videos import EncodedClip, EncodedVideos
from vidsieve.adapters.vision.signals import take
from vidsieve.framework.errors import MediaError, VidsieveError
from vidsieve.framework.records import SIGNALS
from vidsieve.framework.task import Example
from vidsieve.harness.data.clip_reader import ClipReader, FrameCache
from vidsieve.harness.encoding.clip_record import ClipRecord, without_frames
from vidsieve.harness.encoding.content_keys import ClipDigests, digest_of, encoder_digest
from vidsieve.harness.encoding.feature_store import FeatureStore
from vidsieve.media import Clip
from vidsieve.media.encoder import Encoded
from vidsieve.media.processor import Processor, VidsieveProcessor

if TYPE_CHECKING:
    from vidsieve.harness.model_loading import Loaded

AT_ONCE = frozenset({"vision_attention", "pixel_difference"})
"""Signals of one number a token: they are taken in a clip's first pass, so that a policy that asks later makes none."""
Check = Callable[..., None]
"""(inputs, clips, ids of all prompts if they are about one clip): refuses before the vision tower runs."""


@dataclass(frozen=True, eq=False)
class _Read:
    """A clip that was read and preprocessed but not yet encoded. `inputs` has the pixels."""

    example: Example
    key: str | None
    clip: Clip
    inputs: Encoded
    seconds: float


class ClipEncodings:
    """Encodes clips of one model, reader and processor, one a pass: a clip's features are the same in every batch."""

    def __init__(self, loaded: "Loaded", reader: ClipReader, processor: VidsieveProcessor, store: FeatureStore) -> None:
        self._model, self._adapter = loaded.model, loaded.adapter
        self._reader, self._processor, self._store = reader, processor, store
        self._digests = ClipDigests(reader)
        self._pixels = FrameCache()
        self._ahead: set[str | None] = set()

    def inputs(self, questions: Sequence[str], examples: Sequence[Example], check: Check) -> dict[str, Any]:
        """Make what `generate` takes for a batch; its tensors are on the device.

        Raises as the reader, the processor and `check` do.
        """
        found: dict[Any, ClipRecord | _Read] = {}
        keys = [self._key(example) or example for example in examples]
        for key, example in zip(keys, examples, strict=True):
            found[key] = found.get(key) or self._known(example) or self._read(example)
        clips = [found[key].clip for key in keys]
        inputs = self._around(questions, [found[key] for key in keys])
        check(inputs, clips)
        records = [self._record(found, key) for key in keys]
        source = _Examples(self, list(zip(examples, records, strict=True)))
        encoded = EncodedVideos.of([self._on_device(record.encoded) for record in records], source)
        return {**self.moved(inputs), "mm_encoder_outputs": {self._adapter.modality: encoded}}

    def prompt_ids(self, questions: Sequence[str], example: Example, check: Check) -> list[Int[Tensor, " _"]]:
        """Make the ids of each question about one clip. Raises as `inputs`."""
        record = self._encoded_first(questions, example, check)
        return self._ids(questions, record)

    def shape(self, question: str, example: Example, check: Check) -> Hashable:
        """Return what decides the sizes of a clip's inputs, but for its question. Raises as `inputs`."""
        record = self._encoded_first([question], example, check)
        return len(record.clip.frames), tuple(map(tuple, record.inputs.runs))

    def with_signals(self, example: Example, record: ClipRecord, names: Collection[str]) -> Mapping[str, Tensor]:
        """Return a clip's signals; where one was not taken yet, in another pass over it."""
        wanted = set(names)
        if wanted <= record.encoded.signals.keys():
            return record.encoded.signals
        now = self._known(example)  # perhaps another question has asked since
        if now is None or not wanted <= now.encoded.signals.keys():
            now = self._encoded(self._read(example), wanted | record.encoded.signals.keys())
        return now.encoded.signals

    def pixels(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Make the pixels of a batch, for a policy that looks at them."""
        parts = [self._pixels_of(example) for example in examples]
        return self._pixels_on_device({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    @cached_property
    def _base(self) -> tuple[str, str]:
        return self._store.model_key, encoder_digest(self._processor.encoder)

    @cached_property
    def _offered(self) -> frozenset[str]:
        return self._adapter.offers.intersection(SIGNALS)

    def _key(self, example: Example) -> str | None:
        content = self._digests.of(example)
        return None if content is None else digest_of([*self._base, content])

    def _known(self, example: Example) -> ClipRecord | None:
        key = self._key(example)
        return None if key is None else self._store.get(key, str(example.video or example.id))

    def _around(self, questions: Sequence[str], parts: "Sequence[ClipRecord | _Read]") -> dict[str, Tensor]:
        """Write prompts around the clips. What one of them alone is refused for is said of its file."""
        build = self._processor.build_around
        videos = [part.inputs.without_pixels() for part in parts]
        try:
            return build(questions, [[part.clip] for part in parts], Encoded.join(videos))
        except (VidsieveError, ValueError):
            for question, part, video in zip(questions, parts, videos, strict=True):
                try:
                    build([question], [[part.clip]], video)
                except (VidsieveError, ValueError) as error:
                    raise MediaError(f"{part.clip.source}: {error}") from error
            raise  # each alone is well: it is the batch that is refused

    def _record(self, found: dict[Any, "ClipRecord | _Read"], key: Any) -> ClipRecord:
        """Return a clip's record; the first question about a clip that has none has it encoded."""
        one = found[key]
        if isinstance(one, ClipRecord):
            if key in self._ahead:
                self._ahead.discard(key)
            else:
                self._store.count_reuse(one)
            return one
        found[key] = record = self._encoded(one, AT_ONCE)
        return record

    def _encoded_first(self, questions: Sequence[str], example: Example, check: Check) -> ClipRecord:
        """Return a clip's record ahead of the inputs that will need it, which then do not count as a reuse of it."""
        known = self._known(example)
        if known is not None:
            return known
        read = self._read(example)
        check(self._around(questions[:1], [read]), [read.clip], self._ids(questions, read))
        self._ahead.add(read.key)
        return self._encoded(read, AT_ONCE)

    def _ids(self, questions: Sequence[str], of: "ClipRecord | _Read") -> list[Int[Tensor, " _"]]:
        return [self._around([one], [of])["input_ids"][0] for one in questions]

    def _read(self, example: Example) -> _Read:
        """Read and preprocess, without the reader's own memory, which knows a file by its name alone."""
        start, key = time.perf_counter(), self._key(example)
        clip = self._reader.clip(example, fresh=True)
        try:
            inputs = self._processor.encoder.encode([clip])
        except (VidsieveError, ValueError) as error:
            raise MediaError(f"{clip.source}: {error}") from error
        return _Read(example, key, clip, inputs, time.perf_counter() - start)

    @torch.no_grad()
    def _encoded(self, read: _Read, names: Collection[str]) -> ClipRecord:
        """Run the vision tower over one clip, and keep what it makes."""
        start = time.perf_counter()
        call = {**self.moved(read.inputs.without_pixels().tensors), **self._pixels_on_device(read.inputs.pixels)}
        (output,), signals = take(self._model, self._adapter, [call], self._offered.intersection(names))
        encoded = _on(torch.device("cpu"), EncodedClip.of(output, signals))  # which waits for the device
        seconds = read.seconds + time.perf_counter() - start
        record = ClipRecord(
            encoded=encoded, inputs=read.inputs.without_pixels(), clip=without_frames(read.clip), seconds=seconds
        )
        unchanged = read.key is not None and self._key(read.example) == read.key
        self._store.put(read.key if unchanged else None, record, seconds)
        return record

    def _pixels_of(self, example: Example) -> dict[str, Tensor]:
        key = self._key(example)
        pixels: dict[str, Tensor] | None = None if key is None else self._pixels.get(key)
        if pixels is None:
            pixels = self._read(example).inputs.pixels
            if key is not None:
                self._pixels.put(key, pixels, sum(tensor.nbytes for tensor in pixels.values()))
        return pixels

    def _pixels_on_device(self, pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        moved = self.moved(pixels)
        return {n: t.to(self._model.dtype) if n.startswith("pixel_values") else t for n, t in moved.items()}

    def moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring tensors to the model."""
        return {name: tensor.to(self._model.device) for name, tensor in tensors.items()}

    def _on_device(self, encoded: EncodedClip) -> EncodedClip:
        """Bring features to the model; signals follow when they are asked for."""
        device = self._model.device
        return replace(
            encoded,
            rows=encoded.rows.to(device),
            levels=tuple(level.to(device) for level in encoded.levels),
            signals={},
        )


def encodings_of(
    loaded: "Loaded", reader: ClipReader, processor: Processor, store: FeatureStore
) -> ClipEncodings | None:
    """Make the encodings of a processor; None for transformers' own, which writes no prompt without the frames."""
    return ClipEncodings(loaded, reader, processor, store) if isinstance(processor, VidsieveProcessor) else None


class _Examples:
    """The clips of a batch as a `VideoSource`."""

    def __init__(self, encodings: ClipEncodings, pairs: Sequence[tuple[Example, ClipRecord]]) -> None:
        self._encodings, self._pairs = encodings, pairs

    def signals(self, names: Collection[str]) -> dict[str, Tensor]:
        """These signals of all videos in succession, on the device."""
        found = [self._encodings.with_signals(*pair, names) for pair in self._pairs]
        joined = {name: torch.cat([each[name] for each in found]) for name in names}
        return self._encodings.moved(joined)

    def pixels(self) -> dict[str, Tensor]:
        """The pixels of all videos."""
        return self._encodings.pixels([example for example, _ in self._pairs])


def _on(device: torch.device, encoded: EncodedClip) -> EncodedClip:
    """Copy all tensors: what is kept must not hold the batch that it is a part of."""

    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, copy=True).contiguous()

    return replace(
        encoded,
        rows=copied(encoded.rows),
        levels=tuple(copied(level) for level in encoded.levels),
        signals={name: copied(values) for name, values in encoded.signals.items()},
    )
