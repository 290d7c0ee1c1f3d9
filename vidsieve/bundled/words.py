"""The vocabulary of the bundled models, and the questions they were taught. No torch here.

Every answer is one word. A question is asked in exactly one wording; the models know no other words. Which of them a
model knows is in its `vidsieve.bundled.shapes` record: the mini models' lists begin with the tiny models'.
"""

from collections.abc import Mapping

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("cross", "ring", "triangle", "diamond", "square")
LONG_SHAPES = (*SHAPES, "bar", "pillar", "frame")
SIGN_SHAPES = ("square", "bar", "pillar", "frame")
"""Silhouettes that only signs have on the static rung, as far as a model knows them."""
QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
DIRECTIONS = ("left", "right", "up", "down")
YES_NO = ("yes", "no")

QUESTIONS: Mapping[str, str] = {
    "first_color": "what color is the first flash ?",
    "last_color": "what color is the last flash ?",
    "shape": "what shape is the {color} flash ?",
    "where": "where is the {color} flash ?",
    "order": "does {color} flash before {other} ?",
    "exist": "is there a {color} flash ?",
    "direction": "where does the disc move ?",
    "disc_color": "what color is the disc ?",
    "sign_where": "where is the {color} sign ?",
    "sign_shape": "what shape is the {color} sign ?",
    "first_direction": "where does the disc move first ?",
    "last_direction": "where does the disc move last ?",
}
"""Kind of question → its wording. `{color}` and `{other}` are filled from the scene."""

KINDS = ("first_color", "last_color", "shape", "where", "order", "exist", "direction", "disc_color", "sign_where")
LONG_KINDS = (*KINDS[:6], "first_direction", "last_direction", *KINDS[7:], "sign_shape")
"""Kinds of question that the tiny and the mini models were taught."""


def options(kind: str, silhouettes: tuple[str, ...] = SHAPES) -> tuple[str, ...]:
    """Every answer a kind of question can have; a guess is right once in that many."""
    if kind.endswith("color"):
        return COLORS
    if kind.endswith("shape"):
        return silhouettes
    if kind.endswith("where"):
        return QUADRANTS
    return DIRECTIONS if kind.endswith("direction") else YES_NO


OPTIONS: Mapping[str, tuple[str, ...]] = {kind: options(kind) for kind in KINDS}
"""Kind of question → the answers of the tiny models' task."""

SPECIALS = (
    "<|endoftext|>",
    "<unk>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
)
"""Structural tokens of both families, in the order of their ids. `<|endoftext|>` pads."""

MOMENTS = tuple(f"t{group}" for group in range(32))
"""Words for "in which frame group", used in training captions only."""

_FILLERS = ("what", "color", "shape", "where", "is", "the", "a", "there", "does", "before", "move", "?")
_THINGS = ("first", "last", "flash", "sign", "disc", "nothing")

VOCABULARY: tuple[str, ...] = (
    *SPECIALS,
    *_FILLERS,
    *_THINGS,
    *COLORS,
    *SHAPES,
    *QUADRANTS,
    *DIRECTIONS,
    *YES_NO,
    *MOMENTS[:8],
)
"""Token id → word, of the tiny models."""
LONG_VOCABULARY: tuple[str, ...] = (*VOCABULARY, *LONG_SHAPES[len(SHAPES) :], *MOMENTS[8:])
"""Token id → word, of the mini models: the tiny models' ids, and more."""

TOKEN_ID: Mapping[str, int] = {word: index for index, word in enumerate(LONG_VOCABULARY)}


def token_ids(text: str) -> list[int]:
    """Ids of a text whose words are parted by blanks; a word outside the vocabulary is `<unk>`."""
    return [TOKEN_ID.get(word, TOKEN_ID["<unk>"]) for word in text.split()]
