"""Parts of a video that are worked on one after the other, so that temporary copies stay small beside the features."""

BLOCK_VALUES = 2**21
"""Most values in a block: 8 MiB in float32, which a CPU's caches hold about, and enough to keep a GPU busy."""
LEAST_BLOCKS = 16
"""So many blocks even of a short video, as several temporary copies of a block are alive at a time."""


def blocks(count: int, values_each: int, *, multiple: int = 1) -> list[slice]:
    """Cut `count` things of so many values each into runs; their length is a `multiple`."""
    most = min(BLOCK_VALUES // max(1, values_each), -(-count // LEAST_BLOCKS))
    length = max(1, most // multiple) * multiple
    return [slice(start, start + length) for start in range(0, count, length)]
