"""What is laid over a frame: dropped tokens dimmed, merged ones in the colour and hatching of their target.

No meaning hangs on colour alone: every fate has a pattern or an outline of its own.
"""

import io

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from vidsieve.view.token_fates import Fate, Fates

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Okabe and Ito's, which people with any colour vision tell apart."""
HATCHINGS = 4
VEIL = (38, 42, 48)
VEIL_ALPHA, SKIPPED_ALPHA, TINT_ALPHA = 214, 240, 150
LIGHT = (255, 255, 255)
SIDE = 12
"""Pixels of a token in an overlay, so that a pattern has room."""


def look_of(target_rank: int) -> tuple[str, int]:
    """The colour and the hatching of the target with this rank: neighbours differ in colour."""
    return COLOURS[target_rank % len(COLOURS)], target_rank // len(COLOURS) % HATCHINGS


def ranks(fates: Fates) -> dict[int, int]:
    """The rank of each token that others melted into, by flat number."""
    return {int(flat): rank for rank, flat in enumerate(fates.sources.reshape(-1).nonzero()[0])}


class Overlays:
    """Draws the overlays of one video under one policy, unit by unit."""

    def __init__(self, fates: Fates, side: int = SIDE) -> None:
        self.fates, self.side = fates, side
        self._ranks = ranks(fates)
        self._patterns = _patterns(side)

    def of(self, unit: int) -> UInt8[np.ndarray, "height width 4"]:
        """The overlay of one unit: RGBA, `side` pixels a token along each edge."""
        rows, columns = self.fates.grid
        picture = np.zeros((rows * self.side, columns * self.side, 4), dtype=np.uint8)
        for token in range(rows * columns):
            row, column = divmod(token, columns)
            place = np.s_[row * self.side : (row + 1) * self.side, column * self.side : (column + 1) * self.side]
            self._token(picture[place], unit, token)
        self._edge(picture, self.fates.fate[unit].reshape(rows, columns) == Fate.KEPT)
        self._targets(picture, unit)
        return picture

    def png(self, unit: int) -> bytes:
        """The same as a PNG file."""
        return _png(self.of(unit))

    def _token(self, place: UInt8[np.ndarray, "side side 4"], unit: int, token: int) -> None:
        """One token's veil, tint and pattern."""
        fate, target = self.fates.fate[unit, token], int(self.fates.target[unit, token])
        if fate == Fate.KEPT:
            return
        if target >= 0:
            colour, hatching = look_of(self._ranks[target])
            place[:] = (*_rgb(colour), TINT_ALPHA if fate == Fate.MERGED else TINT_ALPHA * 2 // 3)
            place[self._patterns[hatching]] = (*VEIL, TINT_ALPHA)
        elif fate == Fate.LATER:
            # the deeper a token goes, the brighter it is
            gone = 1 - self.fates.depth[unit, token] / self.fates.layers
            place[:] = (*VEIL, int(60 + (VEIL_ALPHA - 90) * gone))
            place[self._stripes(int(self.fates.depth[unit, token]) - 1)] = (*LIGHT, 150)
        else:
            place[:] = (*VEIL, SKIPPED_ALPHA if fate == Fate.SKIPPED else VEIL_ALPHA)
            if fate == Fate.SKIPPED:
                place[self._patterns[3]] = (*LIGHT, 70)
            elif fate == Fate.ABSENT:
                middle = self.side // 2
                place[middle - 1 : middle + 1, middle - 1 : middle + 1] = (*LIGHT, 170)

    def _stripes(self, layer: int) -> Bool[np.ndarray, "side side"]:
        """Level bars, as many as the prune point's turn says: one for the first."""
        points = sorted(set(self.fates.points))
        turn = points.index(layer) + 1 if layer in points else 1
        lines = np.zeros((self.side, self.side), dtype=bool)
        for number in range(min(turn, 4)):
            lines[self.side - 3 - 3 * number, 2:-2] = True
        return lines

    def _edge(self, picture: UInt8[np.ndarray, "height width 4"], seen: Bool[np.ndarray, "rows columns"]) -> None:
        """A thin light line around what goes through the whole language model."""
        wide = np.kron(seen, np.ones((self.side, self.side), dtype=bool))
        outside = np.pad(~wide, 1, constant_values=False)
        beside = outside[:-2, 1:-1] | outside[2:, 1:-1] | outside[1:-1, :-2] | outside[1:-1, 2:]
        picture[wide & beside] = (*LIGHT, 235)

    def _targets(self, picture: UInt8[np.ndarray, "height width 4"], unit: int) -> None:
        """A thick outline in its colour around each token that others melted into, with its hatching in a corner."""
        _, columns = self.fates.grid
        tokens = self.fates.fate.shape[1]
        for token in self.fates.sources[unit].nonzero()[0]:
            colour, hatching = look_of(self._ranks[unit * tokens + int(token)])
            row, column = divmod(int(token), columns)
            place = picture[row * self.side : (row + 1) * self.side, column * self.side : (column + 1) * self.side]
            frame = np.ones((self.side, self.side), dtype=bool)
            frame[2:-2, 2:-2] = False
            place[frame] = (*_rgb(colour), 255)
            corner = np.zeros_like(frame)
            corner[: self.side // 3 + 2, : self.side // 3 + 2] = True
            place[corner] = (*_rgb(colour), 255)
            place[corner & self._patterns[hatching]] = (*VEIL, 255)


def painted(
    frame: UInt8[np.ndarray, "height width 3"], overlay: UInt8[np.ndarray, "rows columns 4"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A frame with an overlay stretched over it."""
    height, width = frame.shape[:2]
    over = np.asarray(Image.fromarray(overlay).resize((width, height), Image.Resampling.NEAREST))
    alpha: Float[np.ndarray, "height width 1"] = over[..., 3:] / 255.0
    return np.round(frame * (1 - alpha) + over[..., :3] * alpha).astype(np.uint8)


def _patterns(side: int) -> list[Bool[np.ndarray, "side side"]]:
    """Rising lines, falling lines, upright lines, a lattice."""
    y, x = np.mgrid[:side, :side]
    step = max(3, side // 2)
    rising, falling = (x + y) % step == 0, (x - y) % step == 0
    return [rising, falling, x % step == step // 2, rising | falling]


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def _png(picture: UInt8[np.ndarray, "height width channels"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
