"""Seeds from names, so that splits, rungs and training steps never share a random stream."""

import hashlib

import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def rng_of(*parts: object) -> torch.Generator:
    """A torch generator seeded by `parts`."""
    return torch.Generator().manual_seed(seed_of(*parts))
