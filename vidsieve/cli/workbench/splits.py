"""Dividing a user's examples by video into search, re-rank and held-out, the same way every time."""

import hashlib
from collections.abc import Sequence

from vidsieve.framework.task import Example, Split

HELDOUT_SHARE, RERANK_SHARE = 0.5, 0.1


def split_examples(examples: Sequence[Example], split: Split, seed: int) -> list[Example]:
    """The examples of one split, in an order drawn by `seed`; a video and all its questions are in one split only.

    Half of the videos (rounded up) are held out, a tenth (rounded down) is for re-ranking, the rest for the search.
    """
    groups = sorted(dict.fromkeys(example.group for example in examples), key=lambda group: _draw(seed, group))
    heldout = round(len(groups) * HELDOUT_SHARE + 1e-9)
    rerank = int(len(groups) * RERANK_SHARE)
    chosen = {
        "heldout": groups[:heldout],
        "rerank": groups[heldout : heldout + rerank],
        "search": groups[heldout + rerank :],
    }[split]
    place = {group: number for number, group in enumerate(chosen)}
    return sorted((e for e in examples if e.group in place), key=lambda e: place[e.group])


def _draw(seed: int, group: str) -> str:
    """A hash stands for a random number: adding a video does not shuffle the others."""
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()
