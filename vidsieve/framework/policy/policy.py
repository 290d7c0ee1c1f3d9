"""`Policy`: ordered stages, the ratio they are asked for, and the rules of a composition that makes sense."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import ValidationError

from vidsieve.framework.errors import PolicyError, UnknownNameError, UsageError
from vidsieve.framework.hookspecs import REDUCING_HOOKS, VIDEO_HOOKS
from vidsieve.framework.planning.calls import callers
from vidsieve.framework.policy.composition import composition_faults
from vidsieve.framework.stage import Stage

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from vidsieve.framework.planning.pipeline import TokenPlan
    from vidsieve.framework.planning.stream import StreamState
    from vidsieve.framework.records import VideoShape

FORMAT = 1
Positions = Literal["original", "compact"]


@dataclass(frozen=True, eq=False)
class BoundStage:
    """A stage at its place in a policy: `label` addresses its settings, `use` is its registered name."""

    label: str
    use: str
    stage: Stage

    @property
    def fixed(self) -> bool:
        """Whether the setting that decides this stage's count is given."""
        solves = self.stage.solves
        return solves is not None and getattr(self.stage, solves) is not None

    def runs(self, *hooks: str) -> bool:
        """Whether the stage implements one of `hooks`."""
        return any(name in hooks for name in self.stage.hooks())

    def to_dict(self) -> dict[str, Any]:
        """The stage as it stands in a policy file, every setting written out."""
        head = {"use": self.use} | ({"as": self.label} if self.label != self.use else {})
        declared = self.stage.settings()
        settings = self.stage.model_dump(mode="json").items()
        return head | {key: value for key, value in settings if value is not None or declared[key].default is not None}


@dataclass(frozen=True, eq=False, kw_only=True)
class Policy:
    """An ordered list of stages and the retention ratio they are asked for. Immutable; `with_` makes variants.

    `alternatives` holds, by label, stages that a search may put in that place: what `search: stages:` of a policy file
    names, built by whoever read the file. It is no part of the document or the hash.

    Raises:
        PolicyError: the stages do not fit together (a reader before its writer, something made and never read, a
            count nobody decides); all faults in one message.
    """

    name: str
    summary: str = ""
    sources: tuple[str, ...] = ()
    reference: str = ""
    requires: tuple[str, ...] = ()
    retention_ratio: float | None = None
    positions: Positions = "original"
    exact: bool = True
    stages: tuple[BoundStage, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    alternatives: "Mapping[str, tuple[BoundStage, ...]]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.retention_ratio is not None:
            check_ratio(f"policy {self.name!r}, retention_ratio", self.retention_ratio)
        faults = [text for _, text in composition_faults(self)]
        if faults:
            raise PolicyError("\n".join(f"policy {self.name!r}: {fault}" for fault in faults))
        for bound in self.stages:
            callers(bound.stage)

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
        """Stages that choose KV entries in decode (step 10)."""
        return self._having("prune_kv")

    @cached_property
    def closer(self) -> BoundStage | None:
        """The last reducing stage; it answers for the total. None if nothing reduces."""
        return closer_of(self.stages)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run: the model must then be bit-identical to the unpatched one."""
        return not self.stages

    def needs(self) -> frozenset[str]:
        """Inputs and signals some stage cannot do without."""
        return frozenset().union(*(bound.stage.needs() for bound in self.stages))

    def wants(self) -> frozenset[str]:
        """Inputs and signals some stage uses when they are there."""
        return frozenset().union(*(bound.stage.wants() for bound in self.stages))

    def attainable(self, shape: "VideoShape") -> tuple[float, float]:
        """Lowest and highest retention ratio this policy can reach on videos of this shape."""
        from vidsieve.framework.planning.attainable import attainable

        return attainable(self, shape)

    def plan(
        self,
        features: "Float[Tensor, 'frames tokens dim']",
        *,
        token_grid: tuple[int, int, int] | None = None,
        timestamps_s: "Float[Tensor, ' frames'] | None" = None,
        question: "Float[Tensor, 'words dim'] | None" = None,
        signals: "Mapping[str, Tensor] | None" = None,
        frame_index: "Tensor | None" = None,
        units: int | None = None,
        alive: "Bool[Tensor, 'units tokens'] | None" = None,
        layers: int | None = None,
        seed: int = 0,
        video_index: int = 0,
        state: "StreamState | None" = None,
    ) -> "TokenPlan":
        """Run steps 3 to 8 on the projected visual tokens of one video.

        Stages of other steps are named in `plan.report.not_run`. `layers` is the decoder's depth; without it, whether
        a stage inside the language model can reach the ratio is not checked. `video_index` is the place of the video
        in its own request (it seeds the random numbers with `seed`). If step 1 skipped units, `units` is how many the
        video has and `frame_index` which of them `features` holds; ratios count the skipped ones too. `alive` marks
        the visual tokens of all units that the uncompressed model has, where its own processor left some out; ratios
        count only those.

        A long video may come in chunks of frames: `plan.state` of a chunk is the `state` of the next. What stages
        remember in it does not grow; the retention ratio holds for each chunk by itself.

        Raises:
            InputError: tensors whose sizes do not fit together, an unknown signal, or the state of another policy.
            PolicyError: a stage needs an input that is missing, returned a plan the core refuses, or raised.
            RetentionError: the ratio is out of reach for this shape.
        """
        from vidsieve.framework.planning.pipeline import VideoInput, plan_video

        video = VideoInput(
            features=features,
            token_grid=token_grid,
            timestamps_s=timestamps_s,
            question=question,
            signals=dict(signals or {}),
            frame_index=frame_index,
            units=units,
            alive=alive,
            layers=layers,
            seed=seed,
            video_index=video_index,
            state=state,
        )
        return plan_video(self, video)

    def with_(
        self,
        *,
        retention_ratio: float | None = None,
        settings: Mapping[str, Any] | None = None,
        without: Collection[str] = (),
        instead: Mapping[str, BoundStage] | None = None,
    ) -> "Policy":
        """A variant with another retention ratio, other settings (`{"stage-label.setting": value}`) or other stages.

        `without` names labels of stages to leave out, `instead` gives stages to put at the label of another; either
        changes the name (`vidcom2-without-frame-budget`). Settings then address the stages that are there.

        Fixing the setting that decides the last reducing stage's count lets go of the file's ratio, unless a ratio
        is given too; both together must agree when the policy runs. A variant that differs has no provenance: what
        was measured was another policy.

        Raises:
            UsageError: the ratio is not in (0, 1], a label or setting is unknown, or a value does not fit.
            PolicyError: the variant no longer makes sense.
        """
        if without or instead:
            from vidsieve.framework.policy.variants import reshaped

            other = replace(reshaped(self, without, instead or {}), provenance={})
            return other.with_(retention_ratio=retention_ratio, settings=settings)
        settings = settings or {}
        ratio = self.retention_ratio
        if self.closer is not None and settings.get(f"{self.closer.label}.{self.closer.stage.solves}") is not None:
            ratio = None
        if retention_ratio is not None:
            ratio = check_ratio("retention_ratio", retention_ratio)
        variant = replace(self, stages=_with_settings(self, settings), retention_ratio=ratio)
        return variant if variant.hash == self.hash else replace(variant, provenance={})

    def to_dict(self, *, provenance: bool = True) -> dict[str, Any]:
        """The policy as a document: what `to_yaml` writes."""
        document: dict[str, Any] = {"format": FORMAT, "name": self.name, "summary": self.summary}
        document |= {"sources": list(self.sources)} if self.sources else {}
        document |= {"reference": self.reference} if self.reference else {}
        document |= {"requires": list(self.requires)} if self.requires else {}
        document |= {"retention_ratio": self.retention_ratio} if self.retention_ratio is not None else {}
        document |= {"positions": self.positions} if self.positions != "original" else {}
        document |= {"exact": False} if not self.exact else {}
        document["stages"] = [bound.to_dict() for bound in self.stages]
        document |= {"search": dict(self.search)} if self.search else {}
        if provenance and self.provenance:
            document["provenance"] = dict(self.provenance)
        return document

    def to_yaml(self) -> str:
        """The policy file, provenance included."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)

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


def _with_settings(policy: Policy, settings: Mapping[str, Any]) -> tuple[BoundStage, ...]:
    """The stages of `policy` with `settings` applied; keys are split at the last dot."""
    changes: dict[str, dict[str, Any]] = {}
    labels = [bound.label for bound in policy.stages]
    for key, value in settings.items():
        label, _, setting = key.rpartition(".")
        if label not in labels:
            raise UnknownNameError(f"policy {policy.name!r}, setting {key!r}", "stage", label or key, labels)
        changes.setdefault(label, {})[setting] = value
    return tuple(_changed(policy.name, bound, changes.get(bound.label, {})) for bound in policy.stages)


def _changed(policy_name: str, bound: BoundStage, change: Mapping[str, Any]) -> BoundStage:
    """`bound` with some settings replaced and validated."""
    if not change:
        return bound
    where = f"policy {policy_name!r}, stage {bound.label!r}"
    for setting in change:
        if setting not in bound.stage.settings():
            raise UnknownNameError(where, "setting", setting, bound.stage.settings())
    try:
        stage = type(bound.stage).build(bound.stage.model_dump(mode="json") | dict(change))
    except ValidationError as error:
        raise UsageError("\n".join(f"{where}: {text}" for _, text in setting_faults(error))) from None
    return replace(bound, stage=stage)


def setting_faults(error: ValidationError) -> list[tuple[str, str]]:
    """Pydantic's complaints as (setting, sentence) pairs: what was expected and what came."""
    faults = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"][:1]) or "settings"
        came = f", got {item['input']!r}" if item["type"] != "missing" else ""
        faults.append((name, f"{name}: {item['msg'][:1].lower()}{item['msg'][1:]}{came}."))
    return faults
