"""Settings that stages with evict_kv share: the layers they cut, and how many entries each of them keeps."""

from collections.abc import Sequence

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.plans import tokens_to_keep


def layers_from(where: str, first: int | float, num_layers: int) -> tuple[int, ...]:
    """The layers from `first` to the last; below 1, `first` is a fraction of the depth.

    Raises:
        PolicyError: there is none.
    """
    start = first if first >= 1 else max(1, round(first * num_layers))
    if start != int(start) or not 1 <= start < num_layers:
        raise PolicyError(
            f"{where}: first layer {first:g} asked, on a model of {num_layers} decoder layers; it must be a whole "
            f"number from 1 to {num_layers - 1}, or a fraction of the depth below 1."
        )
    return tuple(range(int(start), num_layers))


def entries_left(offered: int, keep_ratio: float, layers: Sequence[int]) -> tuple[int, ...]:
    """The same share of `offered` entries in each of some layers, at least one."""
    return (tokens_to_keep(offered, keep_ratio),) * len(layers)
