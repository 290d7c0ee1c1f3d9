"""The vocabulary of the bundled models, and the questions they were taught. No torch here.

Every answer is one word. A question is asked in exactly one wording; the models know no other words.
"""

from collections.abc import Mapping

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("cross", "ring", "triangle", "diamond", "square")
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
}
"""Kind of question → its wording. `{color}` and `{other}` are filled from the scene."""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "first_color": COLORS,
    "last_color": COLORS,
    "shape": SHAPES,
    "where": QUADRANTS,
    "order": YES_NO,
    "exist": YES_NO,
    "direction": DIRECTIONS,
    "disc_color": COLORS,
    "sign_where": QUADRANTS,
}
"""Kind of question → every answer it can have; a guess is right once in `len(options)`."""

KINDS = tuple(QUESTIONS)

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

MOMENTS = tuple(f"t{group}" for group in range(8))
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
    *MOMENTS,
)
"""Token id → word."""

TOKEN_ID: Mapping[str, int] = {word: index for index, word in enumerate(VOCABULARY)}


def token_ids(text: str) -> list[int]:
    """Ids of a text whose words are parted by blanks; a word outside the vocabulary is `<unk>`."""
    return [TOKEN_ID.get(word, TOKEN_ID["<unk>"]) for word in text.split()]
