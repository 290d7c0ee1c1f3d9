"""Parts of a video that are worked on one after the other, so that temporary copies stay small beside the features."""

BLOCK_VALUES = 2**21
"""Values in a block: 8 MiB in float32, which a CPU's caches hold about, and enough to keep a GPU busy."""


def blocks(count: int, values_each: int, *, multiple: int = 1) -> list[slice]:
    """Cut `count` things of so many values each into runs of at most `BLOCK_VALUES`; the length is a `multiple`."""
    length = max(1, BLOCK_VALUES // max(1, values_each) // multiple) * multiple
    return [slice(start, start + length) for start in range(0, count, length)]
