"""Objects as bytes between parent and child: plain pickle, which a process that is not a fork can read back."""

import io
import pickle
from types import FunctionType
from typing import Any

import torch


def pack(content: Any) -> bytes:
    """`content` as bytes. Tensors travel by value, and of a view only what it shows.

    Raises:
        TypeError, AttributeError, pickle.PicklingError: something in it cannot travel.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(content)
    return buffer.getvalue()


def unpack(parcel: bytes) -> Any:
    """What `pack` was given. Raises whatever its classes raise, or ImportError where they are not there."""
    return pickle.loads(parcel)


class _Pickler(pickle.Pickler):
    """Refuses what only the running script could read back; hands tensors over as arrays."""

    def reducer_override(self, content: Any) -> Any:
        if isinstance(content, type | FunctionType) and content.__module__ == "__main__":
            raise pickle.PicklingError(f"{content.__qualname__} is defined in the running script")
        if type(content) is torch.Tensor and _is_plain(content):
            return torch.from_numpy, (content.numpy(),)
        return NotImplemented


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether numpy can stand for it. Otherwise pickle would take the whole storage behind a view."""
    known = tensor.dtype in (torch.uint8, torch.int64, torch.int32, torch.bool, torch.float32, torch.float64)
    return known and tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad
