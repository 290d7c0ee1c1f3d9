"""What planning adds to the memory of a long video: counted tensor by tensor, as they come and go."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidsieve import load_policy
from vidsieve.policies.shared import blocks
from vidsieve.testing.samples import video_features

MOST_COPIES = 1.5


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self._seen = {one.untyped_storage().data_ptr() for one in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor) and (place := one.untyped_storage().data_ptr()) not in self._seen:
                self._seen.add(place)
                self.live += one.untyped_storage().nbytes()
                weakref.finalize(one.untyped_storage(), self._freed, place, one.untyped_storage().nbytes())
        self.peak = max(self.peak, self.live)
        return made

    def _freed(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.live -= size


def test_the_count_sees_a_copy() -> None:
    x = torch.ones(1000)
    with LiveBytes(x) as count:
        y = x * 2
        z = x + 1
        del y
        _ = z + 1
    assert count.peak == 2 * x.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["vidcom2", "dycoke"])
def test_planning_a_long_video_adds_little(name: str, dtype: torch.dtype) -> None:
    features = video_features(64, 64, 256).to(dtype)
    policy = load_policy(name)
    policy.plan(features[:8])  # what is made once
    with LiveBytes(features) as count:
        policy.plan(features)
    assert 0 < count.peak <= MOST_COPIES * features.nbytes


@pytest.mark.parametrize("name", ["vidcom2", "dycoke"])
def test_blocks_change_no_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, policy = video_features(13, 36, 64), load_policy(name)
    whole = policy.plan(features).keep
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 1)
    assert torch.equal(policy.plan(features).keep, whole)
