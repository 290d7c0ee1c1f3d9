"""The policies of a search: those requested, or the published ones, with controls."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry
from vidsieve.tuner.space.knobs import searched_by_default

ALL = "all"
"""The word for every published policy that is no control and no released form."""
CONTROLS = ("random", "uniform-frames")
"""Reported at the winner's latency, never searched: a method must beat them to be worth its name."""
RELEASED = "-released"
"""Policies of this ending repeat a paper's released code, fixed counts and oversights included. They are searched
only when named: what they do, their exact twins do within the requested counts."""


class Published(NamedTuple):
    """The published policies by their part in a search: taken by default, taken when named, never searched."""

    searched: list[Policy]
    more: list[Policy]
    controls: list[Policy]


def split_published(policies: Iterable[Policy]) -> Published:
    """Sort published policies into their parts; empty policies and released forms are in none.

    Raises:
        UsageError: a `search:` section whose `default` is neither true nor false.
    """
    found = Published([], [], [])
    for policy in policies:
        if policy.name in CONTROLS:
            found.controls.append(policy)
        elif not policy.is_empty and not policy.name.endswith(RELEASED):
            (found.searched if searched_by_default(policy) else found.more).append(policy)
    return found


def expand_policies(words: Sequence[str | Path], registry: Registry) -> list[Policy]:
    """Load the policies that `words` name, in their order: published names, YAML files, folders, comma lists.

    A word that is a name, a file or a folder as it stands is taken so, commas and all. `all` is every published policy
    that can be searched. The same policy twice is once.

    Raises:
        UsageError: nothing is named, a folder holds no policy file, two different policies share a name.
        UnknownNameError: no such policy; offers the nearest.
        PolicyFileError: faults in a file.
    """
    found: dict[str, tuple[Policy, str]] = {}
    for source in _sources(words, registry):
        policy, origin = load_policy(source, registry=registry), str(source)
        first, where = found.setdefault(policy.name, (policy, origin))
        if first.hash != policy.hash:
            raise UsageError(
                f"`policies`: {where} and {origin} are two different policies named {policy.name!r}; rename one (the "
                "`name:` in its file)."
            )
    return [policy for policy, _ in found.values()]


def _sources(words: Sequence[str | Path], registry: Registry) -> Iterator[str | Path]:
    """Expand folders and comma lists to names and files."""
    for word in words:
        if isinstance(word, Path) or word in registry.policies or os.path.exists(os.path.expanduser(word)):
            yield from _files(word, registry)
            continue
        for part in word.split(","):
            if not part.strip():
                raise UsageError(
                    f"`policies`: {word!r} has an empty name; give NAME, FILE or FOLDER, joined by commas."
                )
            yield from _files(part.strip(), registry)


def _files(word: str | Path, registry: Registry) -> list[str | Path]:
    """List the policy files of a folder, or all published names for `all`; anything else as it is."""
    folder = Path(word).expanduser()
    # os.path: a list of names may be too long for a path, which Path.is_dir raises for
    if isinstance(word, str) and word in registry.policies:
        return [word]
    if not os.path.isdir(folder):
        return _all(registry) if word == ALL else [word]
    files = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml") and path.is_file())
    if not files:
        raise UsageError(f"`policies`: the folder {word} holds no policy file (*.yaml); name another, or the files.")
    return list(files)


def _all(registry: Registry) -> list[str | Path]:
    """List every published policy that can be searched."""
    published = split_published(load_policy(name, registry=registry) for name in sorted(registry.policies))
    return [policy.name for policy in (*published.searched, *published.more)]
