"""Where in the decoder a stage prunes: a layer's number, or a share of the depth."""

from collections.abc import Sequence

from vidsieve.framework.errors import PolicyError

AFTER = "prunes after these decoder layers, zero-based; a fraction is the share of all layers that come before the cut"


def prune_after(where: str, after: Sequence[int | float], num_layers: int) -> tuple[int, ...]:
    """The zero-based layers after which tokens go, on a decoder of `num_layers`.

    Whole numbers stand for themselves. A fraction f leaves the first f of all layers untouched, at least one of
    them; on a shallow decoder two fractions may meet, and then act one after the other.

    Raises:
        PolicyError: no layer comes after one of them, or they fall.
    """
    found = [max(1, round(one * num_layers)) - 1 if isinstance(one, float) else one for one in after]
    if found != sorted(found) or found[-1] > num_layers - 2:
        raise PolicyError(
            f"{where}: after {list(after)} asked, which is after layers {found} of {num_layers}; they must not fall, "
            f"and be {num_layers - 2} at most, so that a layer comes after. Give earlier ones, or fractions."
        )
    return tuple(found)
