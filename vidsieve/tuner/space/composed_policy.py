"""Make a policy of a composition: named by its parts, with the papers of their methods."""

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Sequence

from vidsieve.framework.hookspecs import STAGE_HOOKS
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.stage import Stage
from vidsieve.tuner.space.arrangement import composed
from vidsieve.tuner.space.grammar import Grammar, Skeleton

JOIN = "-and-"
DOES = dict(
    zip(
        STAGE_HOOKS,
        (
            "skip frames by",
            "cut into segments by",
            "share tokens over frames by",
            "score tokens by",
            "select tokens by",
            "merge tokens by",
            "prune inside the decoder by",
            "choose KV entries by",
        ),
        strict=True,
    )
)
"""What a stage with each hook is for, as a summary says it."""
_ARXIV = re.compile(r"arxiv(?:\.org/(?:abs|pdf)/|[ :]\s*)(\d{4}\.\d{4,5})", re.IGNORECASE)


def policy_of(grammar: Grammar, skeleton: Skeleton) -> Policy:
    """Make the policy of a composition, its stages as they are declared.

    Raises:
        PolicyError, PluginError: a stage that does not do what its class declares.
    """
    named = grammar.in_order(skeleton)
    composition = composed(named)
    names = [name for name, _ in named]
    papers = [paper for _, stage in named for paper in papers_of(type(stage))]
    return Policy(
        name=_name(grammar, names),
        summary=f"Composed: {'; '.join(_does(name, stage) for name, stage in named)}.",
        sources=tuple(dict.fromkeys(papers)),
        requires=tuple(dict.fromkeys(grammar.packages[name] for name in names if name in grammar.packages)),
        retention_ratio=composition.retention_ratio,
        stages=composition.stages,
    )


def papers_of(stage: type[Stage]) -> list[str]:
    """Read the papers that a stage's docstring names, else those of its module, as `arXiv:...`."""
    module = inspect.getmodule(stage)
    own = stage.__dict__.get("__doc__") or ""
    found = _ARXIV.findall(own) or _ARXIV.findall((module.__doc__ if module else None) or "")
    return [f"arXiv:{number}" for number in dict.fromkeys(found)]


def _does(name: str, stage: Stage) -> str:
    return f"{' and '.join(DOES[hook] for hook in stage.hooks())} {name}"


def _name(grammar: Grammar, names: Sequence[str]) -> str:
    """Name a policy by its stages; where that could mean another policy too, with a digest behind it."""
    slugs = [_slug(name) for name in names]
    name = JOIN.join(slugs)
    known = Counter(_slug(each) for each in grammar.stages)
    clear = all(known[slug] == 1 and JOIN not in slug for slug in slugs)
    if clear and name not in grammar.published_names:
        return name
    return f"{name}-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:6]}"


def _slug(name: str) -> str:
    """Write a stage's name in letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name)
