"""Seeing whether code waits for the device."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Readbacks(TorchDispatchMode):
    """While open, counts operations that read a value back, or whose result's size depends on one."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return func(*args, **(kwargs or {}))
