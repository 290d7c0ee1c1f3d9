"""The curriculum of the mini models: what clips look like in each stage, and when the next one begins.

Things happen in a window of the picture first and only the window's tokens are given: 32 frame groups are then as cheap
as 8 whole ones, so that time is learnt before the picture is large. What needs the whole picture, the disc's way, is
learnt on whole pictures of few groups beside it. A stage ends when every kind of question is
answered fairly well, or after its most steps.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from vidsieve.bundled.scene import Rung

FLUENT: Final = 0.8
WORST: Final = 3
"""A stage ends when the running accuracy of its three worst kinds of question is at least this on average.

Directions do not count in a window, where a leg of the disc crosses a cell or two.
"""
FEWEST_STEPS: Final = 60
MEMORY: Final = 0.95


@dataclass(frozen=True)
class Sort:
    """Clips of one length and window: `groups` frame groups, `cells` rows and columns of visual tokens."""

    groups: int
    cells: int

    @property
    def tokens(self) -> int:
        """Visual tokens of a clip."""
        return self.groups * self.cells**2


@dataclass(frozen=True)
class Stage:
    """Clips of `main` mostly, and of `others` in `other_share` of the batches.

    flashes: most events in the crowded half of the clips.  rungs: share of each.  drop: share of batches that lose
    tokens.  fewest: smallest share of tokens left.  tokens: of a batch, text and all.
    guided: whether attention is shown where to look.
    """

    main: Sort
    others: tuple[Sort, ...]
    rungs: Mapping[Rung, float]
    most_steps: int
    flashes: int = 6
    other_share: float = 0.2
    drop: float = 0.0
    fewest: float = 0.05
    tokens: int = 3000
    guided: bool = False


_STATIC: Mapping[Rung, float] = {"static": 1.0}
_NO_CUTS: Mapping[Rung, float] = {"static": 0.6, "jitter": 0.4}
_ALL: Mapping[Rung, float] = {"static": 0.45, "jitter": 0.3, "cuts": 0.25}
_SHORT: Final = (Sort(4, 8), Sort(8, 8), Sort(8, 8), Sort(12, 8))
"""Whole pictures of few groups: where the disc crosses several cells a leg at a few hundred tokens a clip."""
STAGES: Final = (
    Stage(Sort(4, 4), (), _STATIC, 500, guided=True),
    Stage(Sort(8, 4), (Sort(4, 8),), _STATIC, 500, guided=True),
    Stage(Sort(12, 4), (Sort(4, 4), Sort(8, 8)), _NO_CUTS, 400, drop=0.2, fewest=0.3, guided=True),
    Stage(Sort(20, 4), (Sort(8, 4), Sort(8, 8)), _ALL, 400, drop=0.3, fewest=0.3, guided=True),
    Stage(Sort(32, 4), _SHORT, _ALL, 1150, other_share=0.5, drop=0.4, fewest=0.2, tokens=4000, guided=True),
    Stage(
        Sort(32, 8),
        (*_SHORT, Sort(32, 4), Sort(20, 8)),
        _ALL,
        1 << 30,
        other_share=0.4,
        drop=0.85,
        tokens=6000,
        guided=True,
    ),
)


@dataclass
class Position:
    """Where a run is in the curriculum; all that it needs besides weights and optimizer to go on.

    drawn: clips used so far in this stage, by sort.  skill: running accuracy by kind on the stage's main sort.
    """

    step: int = 0
    stage: int = 0
    since: int = 0
    drawn: dict[str, int] = field(default_factory=dict)
    skill: dict[str, float] = field(default_factory=dict)

    def advance(self, stages: tuple[Stage, ...], sort: Sort, right: Mapping[str, float]) -> bool:
        """Count a step with its accuracies; True where a new stage begins."""
        now = stages[self.stage]
        self.step, self.since = self.step + 1, self.since + 1
        if sort == now.main:
            for kind, share in right.items():
                self.skill[kind] = MEMORY * self.skill.get(kind, share) + (1 - MEMORY) * share
        small = now.main.cells < min(stages[-1].main.cells, 6)
        counted = [share for kind, share in self.skill.items() if not (small and kind.endswith("direction"))]
        worst = sorted(counted)[:WORST]
        fluent = self.since >= FEWEST_STEPS and bool(worst) and sum(worst) / len(worst) >= FLUENT
        if self.stage + 1 == len(stages) or not (fluent or self.since >= now.most_steps):
            return False
        self.stage, self.since = self.stage + 1, 0
        self.drawn, self.skill = {}, {}
        return True

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)
