"""The grammar of stages: what parts a policy may have, and which stages fit together in them.

A part is told by hooks. What fits is told by `composition_faults`, which sees of a stage only its hooks, what it reads
and whether it decides its count; so stages that agree in that are one kind, and kinds are combined instead of stages.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from vidsieve.framework.composition import BoundStage, Composition, stage_faults
from vidsieve.framework.hookspecs import KV_HOOKS, VIDEO_HOOKS
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.stage import Stage, setting_faults
from vidsieve.tuner.space.arrangement import fit, fitting_order


class Part(NamedTuple):
    """A place for at most one stage: one that implements any of `hooks`."""

    name: str
    hooks: tuple[str, ...]


PARTS = (
    Part("selector or merger", ("select_tokens", "merge_tokens")),
    Part("layer stage", ("prune_layer",)),
    Part("scorer", ("score_tokens",)),
    Part("frame budget", ("budget_frames",)),
    Part("segmenter", ("segment_frames",)),
    Part("frame skipper", ("reduce_frames",)),
    Part("KV stage", KV_HOOKS),
)
"""In the order in which a search chooses: who reads before who is read."""

Skeleton = tuple[str | None, ...]
"""The stage at each part, None where there is none. A stage whose hooks fill several parts stands at the first."""


class Kind(NamedTuple):
    """What the rules of composition see of a stage."""

    hooks: tuple[str, ...]
    reads: tuple[str, ...]
    reads_if_made: tuple[str, ...]
    solves: bool
    data_dependent: bool

    @classmethod
    def of(cls, stage: Stage) -> "Kind":
        """Return the kind of `stage` with its default settings."""
        return cls(stage.hooks(), stage.reads, stage.reads_if_made, stage.solves is not None, stage.data_dependent)

    @property
    def sees_tokens(self) -> bool:
        """Whether any of its hooks is shown visual tokens, and so what other stages made of them."""
        return bool(set(self.hooks) & {*VIDEO_HOOKS, "prune_layer"})

    @property
    def parts(self) -> tuple[int, ...]:
        """Indices of the parts it fills."""
        return tuple(index for index, part in enumerate(PARTS) if set(part.hooks) & set(self.hooks))


class Grammar:
    """All compositions of registered stages that are policies and that nobody published.

    Stages that need what the model does not offer, or that act where its adapter does not, take no part; nor do those
    that cannot be built from their defaults, and without `decode` those that work in decode alone. `left_out` says
    why. None for `offers` or `hooks` is everything. `packages` names, by stage, what must be installed to have it.
    """

    def __init__(
        self,
        stages: Mapping[str, type[Stage]],
        *,
        published: Sequence[Policy] = (),
        offers: Collection[str] | None = None,
        hooks: Collection[str] | None = None,
        decode: bool = True,
        packages: Mapping[str, str] | None = None,
    ) -> None:
        self.stages: dict[str, Stage] = {}
        self.left_out: dict[str, str] = {}
        for name in sorted(stages):
            try:
                stage = stages[name].build({})
                why = _unfit(name, stage, offers, hooks, decode)
            except Exception as error:  # a stranger's stage may raise anything
                why = _told(error)
            if why:
                self.left_out[name] = why
            else:
                self.stages[name] = stage
        self._published = published
        self.published_names = frozenset(policy.name for policy in published)
        self.packages = dict(packages or {})
        self._kind = {name: Kind.of(stage) for name, stage in self.stages.items()}

    @cached_property
    def _at(self) -> dict[int, list[str]]:
        """The stages by the first part they fill."""
        found: dict[int, list[str]] = {}
        for name, kind in self._kind.items():
            found.setdefault(kind.parts[0], []).append(name)
        return found

    @cached_property
    def members(self) -> dict[Kind, tuple[str, ...]]:
        """The stages of each kind, by name."""
        found: dict[Kind, list[str]] = {}
        for name, kind in self._kind.items():
            found.setdefault(kind, []).append(name)
        return {kind: tuple(names) for kind, names in found.items()}

    @cached_property
    def fits(self) -> dict[tuple[Kind | None, ...], tuple[int, ...]]:
        """The kinds that fit together, and the order they stand in: indices of parts."""
        found: dict[tuple[Kind | None, ...], tuple[int, ...]] = {}
        for kinds in self._combinations(()):
            order = self._order(kinds, found)
            if order:
                found[kinds] = order
        return found

    def _order(
        self, kinds: tuple[Kind | None, ...], found: Mapping[tuple[Kind | None, ...], tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """Order kinds, as indices of parts; None where they do not fit.

        Stages that see no visual tokens are asked for once the others fit: they mend nothing.
        """
        filled = [index for index, kind in enumerate(kinds) if kind is not None]
        others = tuple(kind if kind is None or kind.sees_tokens else None for kind in kinds)
        if others in (kinds, (None,) * len(kinds)):
            order = fitting_order([self._stand_in(kinds[index]) for index in filled]) if filled else None
            return None if order is None else tuple(filled[position] for position in order)
        if others not in found:
            return None
        aside = [index for index in filled if others[index] is None]
        first = [index for index in aside if "reduce_frames" in kinds[index].hooks]  # type: ignore[union-attr]
        placed = (*first, *found[others], *(index for index in aside if index not in first))
        return placed if fit([self._stand_in(kinds[index]) for index in placed]) else None

    def _stand_in(self, kind: Kind | None) -> Stage:
        """Return one stage of a kind: the rules cannot tell it from the others."""
        assert kind is not None
        return self.stages[self.members[kind][0]]

    def _combinations(self, chosen: tuple[Kind | None, ...]) -> Iterator[tuple[Kind | None, ...]]:
        """Fill the parts that `chosen` leaves open in every way, no part twice."""
        at = len(chosen)
        if at == len(PARTS):
            yield chosen
            return
        filled = {part for kind in chosen if kind is not None for part in kind.parts}
        yield from self._combinations((*chosen, None))
        for kind in self.members:
            if kind.parts[0] == at and not filled & set(kind.parts):
                yield from self._combinations((*chosen, kind))

    @cached_property
    def published(self) -> frozenset[Skeleton]:
        """The published policies as skeletons: those that the grammar would make too, but for settings."""
        found = (self.skeleton([bound.use for bound in policy.stages]) for policy in self._published)
        return frozenset(skeleton for skeleton in found if skeleton is not None)

    def skeleton(self, uses: Sequence[str]) -> Skeleton | None:
        """Place stages at their parts; None where the grammar makes no such policy."""
        places: dict[int, str] = {}
        for use in uses:
            if use not in self.stages or (part := self._kind[use].parts[0]) in places:
                return None
            places[part] = use
        skeleton = tuple(places.get(index) for index in range(len(PARTS)))
        return skeleton if self._kinds(skeleton) in self.fits else None

    def _kinds(self, chosen: Skeleton) -> tuple[Kind | None, ...]:
        return tuple(None if name is None else self._kind[name] for name in chosen)

    @cached_property
    def _counts(self) -> Counter[tuple[Kind | None, ...]]:
        """How many ways lead on from the kinds at the first parts, published ones included."""
        found: Counter[tuple[Kind | None, ...]] = Counter()
        for kinds in self.fits:
            ways = 1
            for length in range(len(PARTS), -1, -1):
                found[kinds[:length]] += ways
                kind = kinds[length - 1] if length else None
                ways *= len(self.members[kind]) if kind is not None else 1
        return found

    @cached_property
    def _taken(self) -> Counter[Skeleton]:
        """How many published policies begin with the stages at the first parts."""
        return Counter(skeleton[:length] for skeleton in self.published for length in range(len(PARTS) + 1))

    def count(self, chosen: Skeleton = ()) -> int:
        """Count the compositions that begin with what `chosen` has at the first parts."""
        return self._counts[self._kinds(chosen)] - self._taken[chosen]

    def choices(self, chosen: Skeleton) -> list[str | None]:
        """List what may stand at the next part, None (nothing) first: only what leads on to a composition."""
        names = self._at.get(len(chosen), [])
        return [choice for choice in (None, *names) if self.count((*chosen, choice)) > 0]

    def candidates(self, part: int) -> list[str]:
        """List the stages that stand at a part in any composition."""
        kinds = {each[part] for each in self.fits}
        return [name for name in self._at.get(part, []) if self._kind[name] in kinds]

    def skeletons(self, chosen: Skeleton = ()) -> Iterator[Skeleton]:
        """Yield the compositions one by one, always in the same order."""
        if len(chosen) == len(PARTS):
            yield chosen
            return
        for choice in self.choices(chosen):
            yield from self.skeletons((*chosen, choice))

    def in_order(self, skeleton: Skeleton) -> list[tuple[str, Stage]]:
        """List the stages of a composition in the order they stand in."""
        names = [skeleton[part] for part in self.fits[self._kinds(skeleton)]]
        return [(name, self.stages[name]) for name in names if name is not None]

    def sentence(self) -> str:
        """Say how many compositions there are, of how many stages, and what takes no part."""
        left_out = "; ".join(f"{name} {why}" for name, why in self.left_out.items())
        return (
            f"compositions: {self.count():,} of {len(self.stages)} stages, besides published ones"
            f"{f' (left out: {left_out})' if left_out else ''}"
        )

    def declarations(self) -> dict[str, str]:
        """Return a digest of what each stage declares: what a study must find again to be resumed."""
        return {name: _digest(stage) for name, stage in self.stages.items()}


def _unfit(name: str, stage: Stage, offers: Collection[str] | None, hooks: Collection[str] | None, decode: bool) -> str:
    """Say why a stage takes no part; empty if it does."""
    faults = stage_faults(Composition(name="", stages=(BoundStage(name, name, stage),)))
    if faults:
        return faults[0][1]
    missing = [] if offers is None else sorted(stage.needs() - set(offers))
    if missing:
        return f"needs {', '.join(missing)}"
    elsewhere = [] if hooks is None else [hook for hook in stage.hooks() if hook not in hooks]
    if elsewhere:
        return f"acts in {', '.join(elsewhere)}, which this model family does not carry out"
    if not decode and set(stage.hooks()) <= {*KV_HOOKS}:
        return "works in decode alone, after what is measured"
    return ""


def _told(error: Exception) -> str:
    """Say in one line why a stage cannot be built from its defaults."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return f"has settings without a default: {' '.join(text for _, text in setting_faults(error))}"
    return f"raised {type(error).__name__}: {error}"


def _digest(stage: Stage) -> str:
    """Digest what a stage declares and the defaults it has."""
    declared = [*Kind.of(stage), sorted(stage.needs()), stage.model_dump(mode="json"), type(stage).model_json_schema()]
    text = json.dumps(declared, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
