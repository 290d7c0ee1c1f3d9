"""`Policy`: a composition that makes sense, with what its file says about it; plans videos and makes variants."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import yaml
from jaxtyping import Bool, Float
from pydantic import ValidationError
from torch import Tensor

from vidsieve.framework.composition import (
    BoundStage,
    Composition,
    Positions,
    check_ratio,
    closer_of,
    composition_faults,
)
from vidsieve.framework.errors import PolicyError, UnknownNameError, UsageError
from vidsieve.framework.planning.attainable import attainable
from vidsieve.framework.planning.checks import callers
from vidsieve.framework.planning.inputs import StreamState, VideoInput
from vidsieve.framework.planning.kept_count import count_fault, kept_tokens
from vidsieve.framework.planning.pipeline import TokenPlan, plan_video
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import setting_faults


@dataclass(frozen=True, eq=False, kw_only=True)
class Policy(Composition):
    """An ordered list of stages and the retention ratio they are asked for. Immutable; `with_` makes variants.

    `alternatives` holds, by label, stages that a search may put in that place: what `search: stages:` of a policy file
    names, built by whoever read the file. It is no part of the document or the hash.

    Raises:
        PolicyError: the stages do not fit together (a reader before its writer, something made and never read, a
            count nobody decides); all faults in one message.
    """

    summary: str = ""
    sources: tuple[str, ...] = ()
    reference: str = ""
    requires: tuple[str, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    alternatives: Mapping[str, tuple[BoundStage, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.retention_ratio is not None:
            check_ratio(f"policy {self.name!r}, retention_ratio", self.retention_ratio)
        faults = [text for _, text in composition_faults(self)]
        if faults:
            raise PolicyError("\n".join(f"policy {self.name!r}: {fault}" for fault in faults))
        for bound in self.stages:
            callers(bound.stage)

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        """Lowest and highest retention ratio this policy can reach on videos of this shape."""
        return attainable(self, shape)

    @property
    def count_fault(self) -> str | None:
        """Why how many tokens stay in the prompt does not follow from the shape of a video; None where it does."""
        return count_fault(self)

    def kept_tokens(self, shape: VideoShape) -> int:
        """How many visual tokens of a video of this shape stay in the prompt.

        Raises:
            RetentionError: the count depends on what the video shows, or the ratio is out of reach on this shape.
        """
        return kept_tokens(self, shape)

    def plan(
        self,
        features: Float[Tensor, "frames tokens dim"],
        *,
        token_grid: tuple[int, int, int] | None = None,
        timestamps_s: Float[Tensor, " frames"] | None = None,
        question: Float[Tensor, "words dim"] | None = None,
        signals: Mapping[str, Tensor] | None = None,
        frame_index: Tensor | None = None,
        units: int | None = None,
        alive: Bool[Tensor, "units tokens"] | None = None,
        layers: int | None = None,
        seed: int = 0,
        video_index: int = 0,
        state: StreamState | None = None,
    ) -> TokenPlan:
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

        The setting `positions` is the policy's own: `original`, `trained` or `compact`.

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
            other = replace(_reshaped(self, without, instead or {}), provenance={})
            return other.with_(retention_ratio=retention_ratio, settings=settings)
        settings = dict(settings or {})
        positions = _checked_positions(self, settings.pop("positions", self.positions))
        ratio = self.retention_ratio
        if self.closer is not None and settings.get(f"{self.closer.label}.{self.closer.stage.solves}") is not None:
            ratio = None
        if retention_ratio is not None:
            ratio = check_ratio("retention_ratio", retention_ratio)
        stages = _with_settings(self, settings)
        variant = replace(self, stages=stages, retention_ratio=ratio, positions=positions)
        return variant if variant.hash == self.hash else replace(variant, provenance={})

    def to_dict(self, *, provenance: bool = True) -> dict[str, Any]:
        """The policy as a document: what `to_yaml` writes."""
        composed = super().to_dict()
        document: dict[str, Any] = {name: composed.pop(name) for name in ("format", "name")} | {"summary": self.summary}
        document |= {"sources": list(self.sources)} if self.sources else {}
        document |= {"reference": self.reference} if self.reference else {}
        document |= {"requires": list(self.requires)} if self.requires else {}
        document |= composed
        document |= {"search": dict(self.search)} if self.search else {}
        if provenance and self.provenance:
            document["provenance"] = dict(self.provenance)
        return document

    def to_yaml(self) -> str:
        """The policy file, provenance included."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _checked_positions(policy: Policy, value: Any) -> Positions:
    if value not in get_args(Positions):
        raise UsageError(
            f"policy {policy.name!r}, setting 'positions': must be original, trained or compact, got {value!r}."
        )
    checked: Positions = value
    return checked


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


def _reshaped(policy: Policy, without: Collection[str], instead: Mapping[str, BoundStage]) -> Policy:
    """`policy` less the stages labelled in `without`, with those of `instead` at the labels they are given for.

    A last reducing stage that has its count fixed lets go of the retention ratio. Entries of the `search:` section
    that concern stages no longer there are dropped.

    Raises:
        UnknownNameError: a label that no stage has.
        UsageError: a stage is both to be left out and to be exchanged.
        PolicyError: what is left does not fit together.
    """
    labels = [bound.label for bound in policy.stages]
    for label in (*without, *instead):
        if label not in labels:
            raise UnknownNameError(f"policy {policy.name!r}", "stage", label, labels)
        if label in without and label in instead:
            raise UsageError(f"policy {policy.name!r}: stage {label!r} is to be left out and to be exchanged; do one.")
    stages: list[BoundStage] = []
    name, summary = policy.name, policy.summary
    for bound in policy.stages:
        if bound.label in without:
            name += f"-without-{_short(policy, bound.label)}"
            summary += f" Without {bound.label}."
        elif bound.label in instead:
            other = instead[bound.label]
            name += f"-with-{_short(policy, other.use)}"
            summary += f" With {other.use} in place of {bound.label}."
            stages.append(other)
        else:
            stages.append(bound)
    closer = closer_of(stages)
    keeps_ratio = closer is None or closer is policy.closer or not closer.fixed
    alternatives = {label: found for label, found in policy.alternatives.items() if label not in (*without, *instead)}
    return replace(
        policy,
        name=name,
        summary=summary.strip(),
        stages=tuple(stages),
        retention_ratio=policy.retention_ratio if keeps_ratio else None,
        alternatives=alternatives,
        search=_still_meant(policy.search, stages, alternatives, {*without, *instead}),
    )


def _short(policy: Policy, stage: str) -> str:
    """`frame-budget` of `vidcom2.frame-budget` in a policy named vidcom2."""
    return stage.removeprefix(f"{policy.name.partition('-')[0]}.")


def _still_meant(
    search: Mapping[str, Any],
    stages: Sequence[BoundStage],
    alternatives: Mapping[str, Sequence[BoundStage]],
    touched: Collection[str],
) -> dict[str, Any]:
    """The entries of a `search:` section that name something these stages or alternatives have."""
    there = [*stages, *(bound for found in alternatives.values() for bound in found)]
    settings = {f"{bound.label}.{setting}" for bound in there for setting in bound.stage.settings()}
    kept = {key: value for key, value in search.items() if "." not in key or key in settings}
    choices = kept.pop("stages", None)
    if isinstance(choices, Mapping):
        choices = {label: choice for label, choice in choices.items() if label not in touched}
    return kept | ({"stages": choices} if choices else {})
