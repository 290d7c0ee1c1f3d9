"""What makes a composition sensible: what is read was made, what is made is read, and counts are decided."""

from typing import TYPE_CHECKING

from vidsieve.framework.errors import suggest
from vidsieve.framework.hookspecs import REDUCING_HOOKS, VIDEO_HOOKS
from vidsieve.framework.records import INPUTS, SIGNALS
from vidsieve.framework.stage import WRITES

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import BoundStage, Policy

Fault = tuple[int | None, str]
"""A fault and the index of its stage; None if it concerns the policy as a whole."""


def composition_faults(policy: "Policy") -> list[Fault]:
    """All that is wrong with a composition, each fault once, in order of the stages."""
    faults = stage_faults(policy) + flow_faults(policy) + count_faults(policy)
    return list(dict.fromkeys(faults))


def stage_faults(policy: "Policy") -> list[Fault]:
    """Stages that cannot be told apart, do nothing, or ask for an input that does not exist."""
    faults: list[Fault] = []
    seen: set[str] = set()
    known = (*INPUTS, *SIGNALS)
    for index, bound in enumerate(policy.stages):
        if bound.label in seen:
            faults.append((index, f"stage {bound.label!r} stands twice; give one of them a label with `as:`."))
        seen.add(bound.label)
        if not bound.stage.hooks():
            faults.append((index, f"stage {bound.label!r} implements no hook, so it would do nothing."))
        for name in sorted((bound.stage.needs() | bound.stage.wants()) - set(known)):
            faults.append(
                (index, f"stage {bound.label!r} asks for {name!r}, which no adapter has. {suggest(name, known)}")
            )
    return faults


def flow_faults(policy: "Policy") -> list[Fault]:
    """Readers before their writers, and things made that nobody reads."""
    flow = _Flow()
    for index, bound in enumerate(policy.stages):
        for hook in bound.stage.hooks():
            if hook in VIDEO_HOOKS:
                flow.video_hook(index, bound, hook)
    for index, bound in enumerate(policy.stages):
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

    def video_hook(self, index: int, bound: "BoundStage", hook: str) -> None:
        """One hook of steps 3 to 7: it reads, then makes something or spends what there is."""
        self.read(index, bound)
        made = WRITES.get(hook)
        self.spend(*((made,) if made else ("budget", "scores")))
        if made:
            self.alive[made] = (index, bound.label)
            self.unread.add(made)

    def layer_hook(self, index: int, bound: "BoundStage") -> None:
        """Step 9 sees what is alive after step 7; the core itself applies a live Budget to the stage's Scores."""
        if bound.runs(*VIDEO_HOOKS):  # what it reads was there for its earlier hook
            self.unread -= {*bound.stage.reads, *bound.stage.reads_if_made}
        else:
            self.read(index, bound)
        self.unread.discard("budget")

    def read(self, index: int, bound: "BoundStage") -> None:
        """Mark what a stage reads; what it must have and is not there is a fault."""
        stage = bound.stage
        for name in stage.reads:
            if name not in self.alive and name not in stage.writes():
                self.faults.append((index, f"stage {bound.label!r} reads {name}, but no earlier stage makes it."))
        self.unread -= {*stage.reads, *stage.reads_if_made}

    def other_hook(self, index: int, bound: "BoundStage") -> None:
        """Steps 1 and 10 are shown neither budget nor scores nor segments."""
        for name in bound.stage.reads:
            hook = bound.stage.hooks()[0] if bound.stage.hooks() else "nothing"
            self.faults.append((index, f"stage {bound.label!r} reads {name}, but {hook} is not shown it."))

    def spend(self, *names: str) -> None:
        """Use up or replace what was made; if nobody read it, that is a fault."""
        for name in names:
            if name in self.alive and name in self.unread:
                index, label = self.alive[name]
                self.faults.append((index, f"stage {label!r} makes {name} that no later stage reads."))
            self.alive.pop(name, None)
            self.unread.discard(name)


def count_faults(policy: "Policy") -> list[Fault]:
    """Counts that nobody decides, or that cannot be met."""
    faults: list[Fault] = []
    ratio, last = policy.retention_ratio, policy.closer or next(iter(policy.frame_stages[::-1]), None)
    for index, bound in enumerate(policy.stages):
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
