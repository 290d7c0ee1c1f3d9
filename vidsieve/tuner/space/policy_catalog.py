"""The policies of a search: those requested, or the published ones, with controls; and compositions of their stages."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vidsieve.framework.errors import UnknownNameError, UsageError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.request import Metric
from vidsieve.tuner.space.candidate import COMPOSED
from vidsieve.tuner.space.grammar import Grammar
from vidsieve.tuner.space.knobs import searched_by_default
from vidsieve.tuner.space.search_space import PolicySpace

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
    that can be searched; `composed` names no policy (see `asks_for_compositions`). The same policy twice is once.

    Raises:
        UsageError: nothing is named, a folder holds no policy file, two different policies share a name.
        UnknownNameError: no such policy; offers the nearest.
        PolicyFileError: faults in a file.
    """
    found: dict[str, tuple[Policy, str]] = {}
    for source in dict.fromkeys(_sources(words, registry)):
        policy, origin = _loaded(source, registry), str(source)
        first, where = found.setdefault(policy.name, (policy, origin))
        if first.hash != policy.hash:
            raise UsageError(
                f"`policies`: {where} and {origin} are two different policies named {policy.name!r}; rename one (the "
                "`name:` in its file)."
            )
    return [policy for policy, _ in found.values()]


def asks_for_compositions(words: Sequence[str | Path], registry: Registry) -> bool:
    """Whether one of `words` is `composed`, where that is no policy, file or folder.

    Raises:
        UsageError: an empty name in a list.
    """
    return any(_means_compositions(word, registry) for word in _split(words, registry))


def _means_compositions(word: str | Path, registry: Registry) -> bool:
    return word == COMPOSED and word not in registry.policies and not os.path.exists(word)


def grammar_of(registry: Registry, bench: Bench, metric: Metric) -> Grammar:
    """Make the grammar of all registered stages that the model of `bench` can run, without what is published.

    A published policy with a stage left out or exchanged, as its search would, counts as published. Stages that work
    in decode alone take no part where `metric` ends at the first token.
    """
    published = [load_policy(name, registry=registry) for name in sorted(registry.policies)]
    return Grammar(
        registry.stages,
        published=[variant for policy in published for variant in _variants(policy)],
        offers=bench.offers,
        hooks=getattr(bench, "hooks", None),
        decode=metric == "e2e",
        packages={name: source for name in registry.stages if (source := _package(registry.origin("stage", name)))},
    )


def _variants(policy: Policy) -> list[Policy]:
    """List a policy and what a search makes of it; itself alone where its `search:` section is faulty."""
    try:
        return [policy, *(variant.policy for variant in PolicySpace.of(policy, None).variants.values())]
    except UsageError:
        return [policy]


def _package(origin: str) -> str:
    """Name what a reader of a policy must have for a stage; empty where the library has it or nobody can tell."""
    if origin.endswith(".py"):
        return os.path.basename(origin)
    module = origin.partition(":")[0].partition(".")[0]
    return module if module.isidentifier() and module not in ("vidsieve", "unknown") else ""


def _loaded(source: str | Path, registry: Registry) -> Policy:
    """Load a policy; where there is none of that name, the words that are no name are offered too."""
    try:
        return load_policy(source, registry=registry)
    except UnknownNameError as error:
        if error.kind != "policy":
            raise
        raise UnknownNameError("`policies`", "policy", error.name, {*error.known, ALL, COMPOSED}) from None


def _sources(words: Sequence[str | Path], registry: Registry) -> Iterator[str | Path]:
    """Expand folders and comma lists to names and files."""
    for word in _split(words, registry):
        if not _means_compositions(word, registry):
            yield from _files(word, registry)


def _split(words: Sequence[str | Path], registry: Registry) -> Iterator[str | Path]:
    """Split comma lists."""
    for word in words:
        if isinstance(word, Path) or word in registry.policies or os.path.exists(os.path.expanduser(word)):
            yield word
            continue
        for part in word.split(","):
            if not part.strip():
                raise UsageError(
                    f"`policies`: {word!r} has an empty name; give NAME, FILE or FOLDER, joined by commas."
                )
            yield part.strip()


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
