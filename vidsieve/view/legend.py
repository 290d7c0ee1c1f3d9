"""How each fate looks: a sample cut from a tiny made-up frame, with its meaning."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vidsieve.view.overlay import Overlays, painted
from vidsieve.view.sentences import NAMES
from vidsieve.view.token_fates import Fate, Fates

SIDE = 14


def samples(every: Sequence[Fates]) -> list[tuple[bytes, str]]:
    """A PNG and a text for each fate that occurs in `every`, and for what receives merged tokens."""
    found = []
    for fate in (Fate.KEPT, Fate.DROPPED, Fate.SKIPPED, Fate.ABSENT):
        if any(fates.count(fate) for fates in every):
            found.append((_sample(fate), NAMES[fate]))
    if any((fates.target >= 0).any() for fates in every):
        found.append((_merged(target=False), "merged: the colour and hatching of its target"))
        found.append((_merged(target=True), "target: outlined, others are merged into it"))
    if any(((fates.fate == Fate.LATER) & (fates.target < 0)).any() for fates in every):
        points = tuple(sorted({point for fates in every for point in fates.points}))
        text = "dropped inside the language model: the brighter the deeper, one bar for each prune point passed"
        found.append((_sample(Fate.LATER, depth=points[0] + 1, points=points), text))
    return found


def _sample(fate: Fate, *, depth: int = 0, points: tuple[int, ...] = ()) -> bytes:
    layers = max([1, *(point + 2 for point in points)])
    one = Fates(
        policy="",
        fate=np.full((1, 1), int(fate)),
        target=np.full((1, 1), -1),
        depth=np.full((1, 1), depth),
        grid=(1, 1),
        layers=layers,
        points=points,
    )
    return _png(one)


def _merged(*, target: bool) -> bytes:
    fate = [Fate.KEPT, Fate.MERGED]
    two = Fates(
        policy="",
        fate=np.array([[int(one)] for one in fate]),
        target=np.array([[-1], [0]]),
        depth=np.array([[1], [0]]),
        grid=(1, 1),
    )
    return _png(two, unit=0 if target else 1)


def _png(fates: Fates, unit: int = 0) -> bytes:
    y, x = np.mgrid[: 2 * SIDE, : 2 * SIDE]
    ground = np.stack([120 + 3 * x, 150 - y, 90 + 2 * y], axis=-1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(painted(ground, Overlays(fates, SIDE).of(unit))).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
