"""The inputs of the recorded segment vectors: scenes of still places and moving ones, from a seed."""

import hashlib

import numpy as np


def scenes(lengths: list[int], tokens: int, dim: int, seed: int) -> np.ndarray:
    """float32 (frames, tokens, dim): each scene has its own background; a third of its places move."""
    rng = np.random.default_rng(seed)
    parts = []
    for length in lengths:
        frames = np.repeat(rng.standard_normal((1, tokens, dim)), length, axis=0)
        moving = rng.random(tokens) < 1 / 3
        frames[:, moving] = rng.standard_normal((length, int(moving.sum()), dim))
        parts.append(frames + 0.25 * rng.standard_normal(frames.shape) + 0.5)
    return np.concatenate(parts).astype(np.float32)


def attention(frames: int, tokens: int, seed: int) -> np.ndarray:
    """float32 (frames, tokens), positive."""
    return np.random.default_rng(seed + 1000).random((frames, tokens)).astype(np.float32)


def digest(x: np.ndarray) -> str:
    """First 16 digits of the SHA-256 of its bytes."""
    return hashlib.sha256(x.tobytes()).hexdigest()[:16]
