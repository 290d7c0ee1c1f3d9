"""Where in the decoder a stage prunes: a layer's number, or a share of the depth."""

from collections.abc import Sequence

from vidsieve.framework.errors import PolicyError

AFTER = "prunes after these decoder layers, zero-based; a fraction is the share of all layers that come before the cut"


def prune_after(where: str, after: Sequence[int | float], num_layers: int) -> tuple[int, ...]:
    """The zero-based layers after which tokens go, on a decoder of `num_layers`.

    Whole numbers stand for themselves. A fraction f leaves the first f of all layers untouched, at least one of
    them; fractions that meet on a shallow decoder move apart.

    Raises:
        PolicyError: no layer comes after one of them, or they do not rise.
    """
    found: list[int] = []
    for value in after:
        layer = max(1, round(value * num_layers)) - 1 if isinstance(value, float) else value
        if isinstance(value, float) and found:
            layer = max(layer, found[-1] + 1)
        found.append(layer)
    if found != sorted(set(found)) or found[-1] > num_layers - 2:
        raise PolicyError(
            f"{where}: after {list(after)} asked, which is after layers {found} of {num_layers}; they must rise and "
            f"be at most {num_layers - 2}, so that a layer comes after. Give fewer or earlier ones."
        )
    return tuple(found)
