"""Dividing a user's examples by video into search, re-rank and held-out, the same way every time."""

import hashlib
from collections.abc import Sequence

from vidsieve.framework.task import Example, Split

HELDOUT_SHARE = 0.5
"""Of all videos: what can be certified hangs on the held-out examples alone."""
RERANK_SHARE = 0.4
"""Of the videos left, so that the search, which ranks dozens of policies, keeps more than the re-rank of a few."""


def split_examples(examples: Sequence[Example], split: Split, seed: int) -> list[Example]:
    """The examples of one split, in an order drawn by `seed`; a video and all its questions are in one split only.

    Half of the videos (rounded up) are held out, a fifth (rounded down) ranks the leaders once more, three tenths are
    searched on. Fewer than six videos leave none to rank with.
    """
    groups = sorted(dict.fromkeys(example.group for example in examples), key=lambda group: _draw(seed, group))
    heldout = round(len(groups) * HELDOUT_SHARE + 1e-9)
    rerank = int((len(groups) - heldout) * RERANK_SHARE)
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
