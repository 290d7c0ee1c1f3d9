"""Keys of encoded clips: equal only where model, settings, machine and the clip's content are the same."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vidsieve import __version__
from vidsieve.framework.task import Example
from vidsieve.harness.data.clip_reader import ClipReader
from vidsieve.harness.encoding.clip_record import FORMAT
from vidsieve.harness.model_loading import device_name

if TYPE_CHECKING:
    from vidsieve.harness.model_loading import Loaded
    from vidsieve.media.encoder import Encoder


def digest_of(described: Any) -> str:
    """Hash plain types."""
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def model_digest(loaded: "Loaded") -> str | None:
    """Hash what decides features: the weights of the vision side, configuration, precision, kernels and libraries.

    None where the weights are not at hand, as with a part of the model offloaded. The language model's own weights do
    not count, so checkpoints that share a tower share its features.
    """
    import transformers

    model: Any = loaded.model
    weights = hashlib.sha256()
    for name, tensor in _vision_tensors(model):
        if tensor.is_meta:
            return None
        weights.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest_of(
        {
            "format": FORMAT,
            "weights": weights.hexdigest(),
            "config": {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "architectures")},
            "dtype": str(model.dtype),
            "attn": str(model.config._attn_implementation),
            "device": device_name(str(model.device)),
            # how many threads share a sum decides how it is rounded
            "threads": (loaded.threads or torch.get_num_threads()) if model.device.type == "cpu" else None,
            "precision": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
            "versions": [__version__, str(torch.__version__), transformers.__version__],
        }
    )


def _vision_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """List the parameters and buffers that are not the language model's."""
    head = model.get_output_embeddings()
    parts = [model.get_decoder(), *([head] if head is not None else [])]
    language = {id(tensor) for part in parts for tensor in chain(part.parameters(), part.buffers())}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if id(tensor) not in language:
            yield name, tensor


def encoder_digest(encoder: "Encoder") -> str:
    """Hash the settings of preprocessing, with the content of the files that they name."""
    settings = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    files = {name: file_digest(value) for name, value in settings.items() if isinstance(value, Path)}
    return digest_of([type(encoder).__name__, settings | files])


def file_digest(file: Path) -> str:
    """Hash a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class ClipDigests:
    """Digests of the frames that a reader takes of an example: a file is hashed again when it has changed."""

    def __init__(self, reader: ClipReader) -> None:
        import av

        self._reading = [reader.frames, reader.fps, av.__version__]
        self._files: dict[Path, tuple[object, str]] = {}
        self._frames: WeakKeyDictionary[Example, str] = WeakKeyDictionary()

    def of(self, example: Example) -> str | None:
        """Return the digest; None for a file that cannot be read, which reading it will say."""
        if example.video is None:
            return digest_of(["frames", self._reading, self._in_memory(example)])
        try:
            return digest_of(["file", self._reading, self._file(Path(example.video))])
        except OSError:
            return None

    def _file(self, file: Path) -> str:
        known = os.stat(file)
        state = (known.st_size, known.st_mtime_ns, known.st_ctime_ns, known.st_ino, known.st_dev)
        if file not in self._files or self._files[file][0] != state:
            self._files[file] = (state, file_digest(file))
        return self._files[file][1]

    def _in_memory(self, example: Example) -> str:
        if example not in self._frames:
            frames = example.frames
            content = b"" if frames is None else frames.contiguous().numpy().tobytes()
            shape = None if frames is None else tuple(frames.shape)
            self._frames[example] = digest_of([hashlib.sha256(content).hexdigest(), shape, example.fps])
        return self._frames[example]
