"""The compositions of a search: an Optuna trial chooses part by part, then settings and retention.

Each is a policy named by its parts, with the papers of their methods.
"""

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.composition import BoundStage
from vidsieve.framework.errors import PolicyError, VidsieveError
from vidsieve.framework.hookspecs import STAGE_HOOKS
from vidsieve.framework.planning.attainable import bracket
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import Stage
from vidsieve.tuner.space.arrangement import composed
from vidsieve.tuner.space.candidate import COMPOSED, RETENTION_DIGITS, Candidate, Solve
from vidsieve.tuner.space.grammar import PARTS, Grammar, Skeleton
from vidsieve.tuner.space.knobs import RETENTION, Knob, knobs_of

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
            "let KV entries go by",
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


AS_DECLARED, SEARCHED = "as declared", "searched"
ON_OR_OFF = [False, True]
SHARE = "share_of_cut"
SHARES = (0.1, 0.9)
SETTING_DIGITS = 4
Choose = Callable[[str, list[Any], int], Any]
"""(parameter, choices, index of the part) -> the choice."""


@dataclass(frozen=True)
class ComposedSpace:
    """All compositions of a grammar as one conditional space.

    A part that a composition can do without is first switched on or off, then filled, with what leads on alone; then
    its stages keep the settings that they declare, or have them searched. `retention` is the range searched; where it
    is `solved` for each candidate, its upper end is what the target allows on the whole.
    """

    grammar: Grammar
    retention: tuple[float, float]
    solved: bool = False
    offers: frozenset[str] | None = None
    shape: VideoShape | None = None

    def suggest(self, trial: Any, solve: Solve | None = None) -> Candidate:
        """Let an Optuna trial choose. Raises PolicyError for what a stage raises, and what `solve` raises."""
        skeleton = self._choose(lambda name, choices, part: trial.suggest_categorical(name, choices))
        policy = policy_of(self.grammar, skeleton)
        free = policy.retention_ratio is not None  # the last stage of a composition never has its count fixed
        searched = self._searched_ratio(trial) if free and not self.solved else None
        try:
            settings = self._settings(trial, policy, self.retention[1] if searched is None else searched)
            policy = policy.with_(settings=settings)
            self._refuse_missing(policy)
            if free:
                policy = policy.with_(retention_ratio=self._ratio(policy, searched, solve))
        except VidsieveError:
            raise
        except Exception as error:  # a stranger's stage may raise anything, and it costs one trial
            raise _blamed(policy, error, self.shape) from None
        stages = {part.name: use for part, use in zip(PARTS, skeleton, strict=True) if use is not None}
        return Candidate(COMPOSED, policy, settings, stages, searched)

    def fixed(self, skeleton: Skeleton, *, searched: bool = False) -> dict[str, Any]:
        """Return the Optuna parameters that choose these stages, with the settings they declare or to be searched."""
        params: dict[str, Any] = {"policy": COMPOSED, f"{COMPOSED}/settings": SEARCHED if searched else AS_DECLARED}

        def answer(name: str, choices: list[Any], part: int) -> Any:
            params[name] = skeleton[part] is not None if choices is ON_OR_OFF else skeleton[part]
            return params[name]

        self._choose(answer)
        return params

    def _choose(self, choose: Choose) -> Skeleton:
        """Choose the stage at each part; a parameter has one list of choices in all trials."""
        chosen: Skeleton = ()
        for index, part in enumerate(PARTS):
            left = self.grammar.choices(chosen)
            stages = [name for name in left if name is not None]
            if None in left and (not stages or not choose(f"{COMPOSED}/with {part.name}", ON_OR_OFF, index)):
                chosen = (*chosen, None)
                continue
            name = f"{COMPOSED}/{part.name}"
            if stages != self.grammar.candidates(index):
                name += f" (of {len(stages)}: {hashlib.sha256(' '.join(stages).encode()).hexdigest()[:6]})"
            chosen = (*chosen, choose(name, stages, index) if len(stages) > 1 else stages[0])
        return chosen

    def _settings(self, trial: Any, policy: Policy, ratio: float) -> dict[str, Any]:
        """Choose what stages leave that do not close; the other settings in a part of the candidates."""
        early = [bound for bound in policy.stages if bound.fixed]
        knobs, others = knobs_of(policy), self.searchable(policy)
        chosen: dict[str, Any] = {}
        for bound in early:
            chosen |= self._count(trial, bound, ratio, len(early), knobs)
        if others and trial.suggest_categorical(f"{COMPOSED}/settings", [AS_DECLARED, SEARCHED]) == SEARCHED:
            chosen |= {knob.name: knob.suggest(trial, COMPOSED) for knob in others}
        return chosen

    def searchable(self, policy: Policy) -> list[Knob]:
        """List the settings of a composition that may be searched, besides what stages leave that do not close."""
        counts = {f"{bound.label}.{bound.stage.solves}" for bound in policy.stages if bound.fixed}
        return [knob for knob in knobs_of(policy) if knob.name not in counts]

    def _count(self, trial: Any, bound: BoundStage, ratio: float, early: int, knobs: Sequence[Knob]) -> dict[str, Any]:
        """Choose what one of the `early` stages leaves: its share of the whole cut to `ratio`, which they divide.

        A stage that leaves `ratio ** share` of what reaches it cannot take more than there is to take. Where the
        count depends on content, or sizes are unknown, its own setting is searched.
        """
        name = f"{bound.label}.{bound.stage.solves}"
        if self.shape is None or bound.stage.data_dependent:
            return {knob.name: knob.suggest(trial, COMPOSED) for knob in knobs if knob.name == name}
        share = trial.suggest_float(f"{COMPOSED}/{bound.label}.{SHARE}", *SHARES) / early
        shape = self.shape
        _, more = bracket(
            bound.stage, lambda stage: round(stage.attainable(shape)[0] * shape.total), ratio**share * shape.total
        )
        value = getattr(more, str(bound.stage.solves))
        return {name: round(value, SETTING_DIGITS) if isinstance(value, float) else value}

    def _searched_ratio(self, trial: Any) -> float:
        low, high = self.retention
        ratio = trial.suggest_float(f"{COMPOSED}/{RETENTION}", low, high)
        return min(high, max(low, round(ratio, RETENTION_DIGITS)))

    def _ratio(self, policy: Policy, searched: float | None, solve: Solve | None) -> float:
        """Return the retention ratio of a candidate, within what it can reach."""
        ratio = searched
        if ratio is None:
            ratio = self.retention[1] if solve is None else solve(COMPOSED, policy)
        low, high = (0.0, 1.0) if self.shape is None else policy.attainable(self.shape)
        return min(max(ratio, low), high)

    def _refuse_missing(self, policy: Policy) -> None:
        """Refuse what only some settings need. Raises PolicyError."""
        missing = policy.needs() - self.offers if self.offers is not None else ()
        if missing:
            raise PolicyError(f"policy {policy.name!r}: with these settings it needs {', '.join(sorted(missing))}")

    def size(self) -> int | None:
        """Return None: settings and counts are endless, even where the compositions are few."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the space in a study."""
        return {
            "compositions": self.grammar.count(),
            "stages": self.grammar.declarations(),
            RETENTION: list(self.retention),
            "solved": self.solved,
        }


def _blamed(policy: Policy, error: Exception, shape: VideoShape | None) -> PolicyError:
    """Say which stage of `policy` raised while it was asked what it reaches."""
    culprit = policy.name
    for bound in policy.stages:
        try:
            bound.stage.attainable(shape or VideoShape(1, 1))
        except Exception:  # which one is all that is asked
            culprit = f"{policy.name}, stage {bound.label!r}"
            break
    return PolicyError(f"policy {culprit}: raised {type(error).__name__}: {error}")
