"""Every test checks the axes: jaxtyping annotations of the package are enforced by beartype."""

import itertools
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# the models of the tests are tiny: more threads make them slower, and commands started by tests inherit this
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from typecheck import check_annotations_of

check_annotations_of("vidsieve")

import pytest
import torch

# a run in the background is handed an ignored SIGINT, and tests press Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["checkpoint_fixtures"]

KIT = "vidsieve.testing.adapter_"
_CACHES = itertools.count()
DECODER_LAWS = (f"{KIT}kv", f"{KIT}layer", f"{KIT}both")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts without encoded clips, and leaves none in the cache of who runs it."""
    monkeypatch.setenv("VIDSIEVE_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{next(_CACHES)}"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_further_case(item):
            item.add_marker(pytest.mark.slow)
    if torch.cuda.is_available():
        return
    reason = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(reason)


def _is_further_case(item: pytest.Item) -> bool:
    """Whether this is a case of a law about the decoder or its cache that varies more than one thing at once.

    Where a family needs few layer laws, one case of each is enough: they say little about the family. So is one of
    the laws of torch.compile, which trace the decoder for seconds.
    """
    kit, spec = getattr(item, "cls", None), getattr(item, "callspec", None)
    law = item.function.__module__ if isinstance(item, pytest.Function) else ""
    every = getattr(kit, "every_layer_law", None)
    if spec is not None and law == f"{KIT}compile":
        return any(index > 0 for index in spec.indices.values())
    if spec is None or every is None or not law.startswith(DECODER_LAWS):
        return False
    return sum(index > 0 for index in spec.indices.values()) > (1 if every else 0)
