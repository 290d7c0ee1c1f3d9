"""What the blocks of a page may use: a registry of their own, an empty folder, a tiny model and its inputs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidsieve.framework import registry

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fresh_registry() -> Iterator[registry.Registry]:
    """A registry that no other page has registered anything with."""
    registry.default.cache_clear()
    yield registry.default()
    registry.default.cache_clear()
