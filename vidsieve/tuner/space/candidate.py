"""`Candidate`: a point of the search space, whatever part of the space it is of."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vidsieve.framework.policy.policy import Policy

RETENTION_DIGITS = 4
COMPOSED = "composed"
"""The base of candidates that are compositions nobody published, and the word that asks for them."""
Solve = Callable[[str, Policy], float]
"""(name of the published policy, candidate) -> the retention ratio the candidate is to have; it may raise."""


@dataclass(frozen=True)
class Candidate:
    """A point of the space: the policy it makes, and what was chosen.

    `stages` gives, by label, what stands there; `searched_ratio` is None where retention is not searched.
    """

    base: str
    policy: Policy
    settings: Mapping[str, Any]
    stages: Mapping[str, str] = field(default_factory=dict)
    searched_ratio: float | None = None

    @property
    def key(self) -> str:
        """The choices as text. Two candidates of one key differ at most in a retention ratio that was solved."""
        return json.dumps([self.base, dict(self.stages), dict(self.settings), self.searched_ratio], sort_keys=True)
