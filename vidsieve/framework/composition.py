"""The composition that planning reads, and what makes it sensible: what is read was made, what is made is read, and
counts are decided.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import yaml

from vidsieve.framework.errors import UsageError, suggest
from vidsieve.framework.hookspecs import KV_HOOKS, REDUCING_HOOKS, VIDEO_HOOKS
from vidsieve.framework.records import INPUTS, SIGNALS
from vidsieve.framework.stage import WRITES, Stage

FORMAT = 1
Positions = Literal["original", "trained", "compact"]


@dataclass(frozen=True, eq=False)
class BoundStage:
    """A stage at its place in a policy: `label` addresses its settings, `use` is its registered name."""

    label: str
    use: str
    stage: Stage

    @cached_property
    def hooks(self) -> tuple[str, ...]:
        """Names of the stage hooks it implements, in house order."""
        return self.stage.hooks()

    @cached_property
    def fixed(self) -> bool:
        """Whether the setting that decides this stage's count is given."""
        solves = self.stage.solves
        return solves is not None and getattr(self.stage, solves) is not None

    def runs(self, *hooks: str) -> bool:
        """Whether the stage implements one of `hooks`."""
        return any(name in hooks for name in self.hooks)

    def to_dict(self) -> dict[str, Any]:
        """The stage as it stands in a policy file, every setting written out."""
        head = {"use": self.use} | ({"as": self.label} if self.label != self.use else {})
        declared = self.stage.settings()
        settings = self.stage.model_dump(mode="json").items()
        return head | {key: value for key, value in settings if value is not None or declared[key].default is not None}


@dataclass(frozen=True, eq=False, kw_only=True)
class Composition:
    """Stages in order, the retention ratio they are asked for, and how positions and counts are treated.

    Nothing is checked here; `composition_faults` says what is wrong.
    """

    name: str
    retention_ratio: float | None = None
    positions: Positions = "original"
    exact: bool = True
    stages: tuple[BoundStage, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_cached"}

    def _having(self, *hooks: str) -> tuple[BoundStage, ...]:
        return tuple(bound for bound in self.stages if bound.runs(*hooks))

    @cached_property
    def frame_stages(self) -> tuple[BoundStage, ...]:
        """Stages that drop frames before the vision tower (step 1)."""
        return self._having("reduce_frames")

    @cached_property
    def video_stages(self) -> tuple[BoundStage, ...]:
        """Stages that work on projected visual tokens (steps 3 to 7)."""
        return self._having(*VIDEO_HOOKS)

    @cached_property
    def layer_stages(self) -> tuple[BoundStage, ...]:
        """Stages that prune inside the language model in prefill (step 9)."""
        return self._having("prune_layer")

    @cached_property
    def kv_stages(self) -> tuple[BoundStage, ...]:
        """Stages that act on the KV cache (step 10): the first token is the same without them."""
        return self._having(*KV_HOOKS)

    @cached_property
    def evict_stages(self) -> tuple[BoundStage, ...]:
        """Stages by which visual entries leave the KV cache for good, once the prompt is read."""
        return self._having("evict_kv")

    @cached_property
    def decode_stages(self) -> tuple[BoundStage, ...]:
        """Stages that choose KV entries in each decode step."""
        return self._having("prune_kv")

    @cached_property
    def closer(self) -> BoundStage | None:
        """The last reducing stage; it answers for the total. None if nothing reduces."""
        return closer_of(self.stages)

    @property
    def counter(self) -> BoundStage | None:
        """The stage that a retention ratio is solved for: the closer, or the last frame stage where nothing closes."""
        return self.closer or next(iter(self.frame_stages[::-1]), None)

    @cached_property
    def hooks(self) -> frozenset[str]:
        """All stage hooks that its stages implement."""
        return frozenset(hook for bound in self.stages for hook in bound.hooks)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run: the model must then be bit-identical to the unpatched one."""
        return not self.stages

    def needs(self) -> frozenset[str]:
        """Inputs and signals some stage cannot do without."""
        return self._needs

    def wants(self) -> frozenset[str]:
        """Inputs and signals some stage uses when they are there."""
        return self._wants

    # stages and their settings are frozen, and each request asks
    @cached_property
    def _needs(self) -> frozenset[str]:
        return frozenset().union(*(bound.stage.needs() for bound in self.stages))

    @cached_property
    def _wants(self) -> frozenset[str]:
        return frozenset().union(*(bound.stage.wants() for bound in self.stages))

    def to_dict(self, *, provenance: bool = True) -> dict[str, Any]:
        """The composition as a document; `provenance` is for what is measured of a policy."""
        document: dict[str, Any] = {"format": FORMAT, "name": self.name}
        document |= {"retention_ratio": self.retention_ratio} if self.retention_ratio is not None else {}
        document |= {"positions": self.positions} if self.positions != "original" else {}
        document |= {"exact": False} if not self.exact else {}
        return document | {"stages": [bound.to_dict() for bound in self.stages]}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical YAML without provenance, every setting written out; first 16 digits."""
        canonical = yaml.safe_dump(self.to_dict(provenance=False), sort_keys=True, allow_unicode=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def closer_of(stages: Sequence[BoundStage]) -> BoundStage | None:
    """The last reducing stage: a layer stage if there is one, else the last that selects or merges."""
    layer = [bound for bound in stages if bound.runs("prune_layer")]
    return next(iter((layer or [bound for bound in stages if bound.runs(*REDUCING_HOOKS)])[::-1]), None)


def check_ratio(where: str, value: Any) -> float:
    """`value` as a ratio in (0, 1]. Raises UsageError with what to do."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise UsageError(f"{where}: must be in (0, 1], got {value!r}. Ratios are fractions kept: 0.25 is a quarter.")
    return float(value)


Fault = tuple[int | None, str]
"""A fault and the index of its stage; None if it concerns the policy as a whole."""


def composition_faults(composition: Composition) -> list[Fault]:
    """All that is wrong with a composition, each fault once, in order of the stages."""
    faults = stage_faults(composition) + flow_faults(composition) + count_faults(composition)
    return list(dict.fromkeys(faults))


def stage_faults(composition: Composition) -> list[Fault]:
    """Stages that cannot be told apart, do nothing, or ask for an input that does not exist."""
    faults: list[Fault] = []
    seen: set[str] = set()
    known = (*INPUTS, *SIGNALS)
    for index, bound in enumerate(composition.stages):
        if bound.label in seen:
            faults.append((index, f"stage {bound.label!r} stands twice; give one of them a label with `as:`."))
        seen.add(bound.label)
        if not bound.hooks:
            faults.append((index, f"stage {bound.label!r} implements no hook, so it would do nothing."))
        for name in sorted((bound.stage.needs() | bound.stage.wants()) - set(known)):
            faults.append(
                (index, f"stage {bound.label!r} asks for {name!r}, which no adapter has. {suggest(name, known)}")
            )
    return faults


def flow_faults(composition: Composition) -> list[Fault]:
    """Readers before their writers, and things made that nobody reads."""
    flow = _Flow()
    for index, bound in enumerate(composition.stages):
        for hook in bound.hooks:
            if hook in VIDEO_HOOKS:
                flow.video_hook(index, bound, hook)
    for index, bound in enumerate(composition.stages):
        if bound.runs("prune_layer"):
            flow.layer_hook(index, bound)
        elif not bound.runs(*VIDEO_HOOKS):
            flow.other_hook(index, bound)
    flow.spend("budget", "scores", "segments")
    return flow.faults


class _Flow:
    """Budget, Scores and Segments on their way from stage to stage."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.alive: dict[str, tuple[int, str]] = {}  # what -> who made it
        self.unread: set[str] = set()

    def video_hook(self, index: int, bound: BoundStage, hook: str) -> None:
        """One hook of steps 3 to 7: it reads, then makes something or spends what there is."""
        self.read(index, bound)
        made = WRITES.get(hook)
        self.spend(*((made,) if made else ("budget", "scores")))
        if made:
            self.alive[made] = (index, bound.label)
            self.unread.add(made)

    def layer_hook(self, index: int, bound: BoundStage) -> None:
        """Step 9 sees what is alive after step 7; the core itself applies a live Budget to the stage's Scores."""
        if bound.runs(*VIDEO_HOOKS):  # what it reads was there for its earlier hook
            self.unread -= {*bound.stage.reads, *bound.stage.reads_if_made}
        else:
            self.read(index, bound)
        self.unread.discard("budget")

    def read(self, index: int, bound: BoundStage) -> None:
        """Mark what a stage reads; what it must have and is not there is a fault."""
        stage = bound.stage
        for name in stage.reads:
            if name not in self.alive and name not in stage.writes():
                self.faults.append((index, f"stage {bound.label!r} reads {name}, but no earlier stage makes it."))
        self.unread -= {*stage.reads, *stage.reads_if_made}

    def other_hook(self, index: int, bound: BoundStage) -> None:
        """Steps 1 and 10 are shown neither budget nor scores nor segments."""
        for name in bound.stage.reads:
            hook = bound.hooks[0] if bound.hooks else "nothing"
            self.faults.append((index, f"stage {bound.label!r} reads {name}, but {hook} is not shown it."))

    def spend(self, *names: str) -> None:
        """Use up or replace what was made; if nobody read it, that is a fault."""
        for name in names:
            if name in self.alive and name in self.unread:
                index, label = self.alive[name]
                self.faults.append((index, f"stage {label!r} makes {name} that no later stage reads."))
            self.alive.pop(name, None)
            self.unread.discard(name)


def count_faults(composition: Composition) -> list[Fault]:
    """Counts that nobody decides, or that cannot be met."""
    faults: list[Fault] = []
    ratio, last = composition.retention_ratio, composition.closer or next(iter(composition.frame_stages[::-1]), None)
    for index, bound in enumerate(composition.stages):
        if not bound.runs("reduce_frames", *REDUCING_HOOKS) or bound is last or not bound.stage.solves or bound.fixed:
            continue
        text = (
            f"stage {bound.label!r} is not the last reducing stage, so its {bound.stage.solves} must be given "
            f"(only {last.label if last else ''!r} is solved for the retention ratio)."
        )
        faults.append((index, text))
    if last is None and ratio is not None and ratio < 1:
        faults.append((None, f"retention_ratio is {ratio:g}, but no stage removes visual tokens before decode."))
    if last is not None and ratio is None and not last.fixed and not last.stage.data_dependent:
        setting = f" or {last.label}.{last.stage.solves}" if last.stage.solves else ""
        faults.append((None, f"nothing says how many tokens stay: give retention_ratio{setting}."))
    return faults
