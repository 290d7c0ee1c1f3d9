"""Which published policies a search takes by default, and which stand beside it as controls."""

from collections.abc import Iterable

from vidsieve.framework.policy import Policy

CONTROLS = ("random", "uniform-frames")
"""Reported at the winner's latency, never searched: a method must beat them to be worth its name."""
RELEASED = "-released"
"""Policies of this ending repeat a paper's released code, fixed counts and oversights included. They are searched
only when asked for by name: what they do, their exact twins do within the counts that are asked."""


def split_published(policies: Iterable[Policy]) -> tuple[list[Policy], list[Policy]]:
    """(policies to search by default, controls), from all published policies. Empty policies belong to neither."""
    search, controls = [], []
    for policy in policies:
        if policy.name in CONTROLS:
            controls.append(policy)
        elif not policy.is_empty and not policy.name.endswith(RELEASED):
            search.append(policy)
    return search, controls
