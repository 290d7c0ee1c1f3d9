"""A long video in chunks: what the stages of a policy remember from one chunk to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vidsieve.framework.errors import InputError, PlanError
from vidsieve.framework.policy.policy import Policy


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamState:
    """What a policy remembers after `chunks` chunks of one video; `Policy.plan` makes it and takes it back.

    `kept` holds, by stage and hook, what their last plans said in `state`. Nothing else of a chunk is kept, so its size
    does not depend on how much of the video has passed.
    """

    policy_hash: str
    chunks: int = 0
    kept: Mapping[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What it holds, in bytes."""
        return sum(value.numel() * value.element_size() for one in self.kept.values() for value in one.values())


def begin(policy: Policy, state: StreamState | None) -> StreamState:
    """The state to go on from: a fresh one for the first chunk.

    Raises:
        InputError: `state` is another policy's.
    """
    if state is None:
        return StreamState(policy_hash=policy.hash)
    if state.policy_hash != policy.hash:
        raise InputError(
            f"policy {policy.name!r}: state was made by another policy ({state.policy_hash}, this is {policy.hash}); "
            "go on with the policy that planned the first chunk, or start without state."
        )
    return state


def remembered(where: str, plan: object) -> dict[str, Tensor] | None:
    """The state in a plan, checked.

    Raises:
        PlanError: it is no dictionary of tensors.
    """
    state = getattr(plan, "state", None)
    if state is None:
        return None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PlanError(f"{where}: state must be a dictionary of tensors, or None, got {type(state).__name__}.")
    return {name: value.detach() for name, value in state.items()}
