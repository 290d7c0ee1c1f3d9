"""Every test checks the axes: jaxtyping annotations of the package are enforced by beartype."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# the models of the tests are tiny: more threads make them slower, and commands started by tests inherit this
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("vidsieve", "typecheck.check")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    reason = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(reason)
