"""The grid of the experiment: every setting that the policy files beside this one list, at every retention ratio."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsieve.framework.errors import RetentionError, UsageError, VidsieveError
from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape

POLICIES = Path(__file__).parent / "policies"
RATIOS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
"""Where accuracy is known. Between them a policy is taken at the next lower one."""
ANCHORS = (0.02, 0.05, 0.8, 1.0)
"""Further retention ratios at which latency alone is measured, at the published settings."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration: a policy file with settings from its lists, at one retention ratio."""

    base: str
    settings: dict[str, Any]
    ratio: float
    policy: Policy

    @property
    def key(self) -> str:
        """Tells what is run, whatever it is called: stages with their settings, and the ratio."""
        return f"{stages_key(self.policy)}@{self.ratio:g}"

    def to_dict(self) -> dict[str, Any]:
        """For the header of a matrix."""
        return {"base": self.base, "settings": self.settings, "ratio": self.ratio, "key": self.key}


def stages_key(policy: Policy) -> str:
    """A short hash of the stages and all their settings, whatever the policy and its stages are called."""
    stages = [(bound.use, bound.stage.model_dump(mode="json")) for bound in policy.stages]
    told = json.dumps([stages, policy.exact, policy.positions], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def policies() -> dict[str, Policy]:
    """The policy files of the experiment, by name."""
    found = [load_policy(path) for path in sorted(POLICIES.glob("*.yaml"))]
    return {policy.name: policy for policy in found}


def settings_of(policy: Policy) -> list[dict[str, Any]]:
    """Every combination of the values that the policy's `search:` section lists."""
    listed = {name: values for name, values in policy.search.items() if isinstance(values, list)}
    return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]


def cells(shape: VideoShape) -> Iterator[Cell]:
    """Every configuration that this shape of video allows; each way of removing tokens once."""
    seen: set[str] = set()
    for base, policy in policies().items():
        for settings, ratio in itertools.product(settings_of(policy), RATIOS):
            try:
                made = policy.with_(retention_ratio=ratio, settings=settings)
                low, high = made.attainable(shape)
            except (RetentionError, UsageError):
                continue
            cell = Cell(base=base, settings=settings, ratio=ratio, policy=made)
            if low - 1e-9 <= ratio <= high + 1e-9 and cell.key not in seen:
                seen.add(cell.key)
                yield cell


def anchors(shape: VideoShape) -> Iterator[Cell]:
    """The published settings of every policy at its lowest and highest retention ratio and at `ANCHORS`."""
    for base, policy in policies().items():
        try:
            low, high = policy.attainable(shape)
        except VidsieveError:
            continue
        for ratio in sorted({low, high, *(ratio for ratio in ANCHORS if low < ratio < high)}):
            if ratio not in RATIOS:
                yield Cell(base=base, settings={}, ratio=ratio, policy=policy.with_(retention_ratio=ratio))
