"""Write the prompt of an example, and turn its options into token ids."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidsieve.framework.errors import DataError
from vidsieve.framework.task import Example

if TYPE_CHECKING:
    from vidsieve.media.prompter import Prompter

INSTRUCTION = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class ScoredPrompt:
    """`question` as the prompt has it; `choices` are the answers that are scored, in the order of the options."""

    question: str
    choices: tuple[str, ...] = ()


def scored_prompt(example: Example, *, as_written: bool) -> ScoredPrompt:
    """Write the prompt of an example.

    Options that the question does not name are listed under it with letters, and the letters are scored. `as_written`
    leaves the question as it is.

    Raises:
        DataError: more options than letters.
    """
    options = example.options or ()
    if not options or as_written or _names_all(example.question, options):
        return ScoredPrompt(example.question, options)
    if len(options) > len(string.ascii_uppercase):
        raise DataError(f"example {example.id!r}: has {len(options)} options, at most 26 can be lettered.")
    letters = tuple(string.ascii_uppercase[: len(options)])
    listed = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    return ScoredPrompt("\n".join([example.question, *listed, INSTRUCTION]), letters)


def _names_all(question: str, options: Sequence[str]) -> bool:
    """Whether every option stands in the question, as words of its own."""
    return all(re.search(rf"(?<!\w){re.escape(option)}(?!\w)", question) for option in options)


def choice_ids(prompter: "Prompter", scored: ScoredPrompt) -> list[list[int]]:
    """List for each choice the token ids by which it continues the prompt."""
    return continuation_ids(prompter, prompter.text(scored.question, 1), scored.choices)


def continuation_ids(prompter: "Prompter", prompt: str, continuations: Sequence[str]) -> list[list[int]]:
    """List the token ids by which each text continues a finished prompt, behind a blank where it ends in none."""
    before = prompter.token_ids(prompt)
    ends_in_special = any(prompt.endswith(token) for token in prompter.tokenizer.all_special_tokens)
    gap = "" if not prompt or prompt[-1].isspace() or ends_in_special else " "
    return [_tail(before, prompter.token_ids(prompt + gap + choice)) for choice in continuations]


def _tail(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return what `after` has beyond the beginning it shares with `before`."""
    shared = 0
    while shared < min(len(before), len(after)) and before[shared] == after[shared]:
        shared += 1
    return list(after[shared:])


def normalised(answer: str) -> str:
    """Write an open answer as it is compared: lower case, single blanks, no punctuation around it."""
    return " ".join(answer.casefold().split()).strip(string.punctuation + string.whitespace)
