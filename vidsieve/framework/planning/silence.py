"""Silent no-ops are this field's commonest bug: a policy that removed nothing though it should have."""

import warnings
from typing import TYPE_CHECKING

from vidsieve.framework.errors import PolicyError
from vidsieve.framework.hookspecs import REDUCING_HOOKS
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.framework.records import VideoShape

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import BoundStage, Policy


def refuse_silence(policy: "Policy", shape: VideoShape) -> list[str]:
    """Called when nothing was removed from a video of `shape`: what the Report should note about it.

    A count that depends on content may come out at everything, which is worth a warning; a static count below all is
    a fault.

    Raises:
        PolicyError: a stage whose count does not depend on content should have removed something.
    """
    where = f"policy {policy.name!r}"
    reducing = [bound for bound in policy.video_stages if bound.runs(*REDUCING_HOOKS)]
    for bound in reducing:
        left = _expected(policy, bound, shape)
        if left < shape.total and not bound.stage.data_dependent:
            raise PolicyError(
                f"{where}: stage {bound.label!r} should have left {left} of {shape.total} visual tokens, but nothing "
                "was removed. Check its settings."
            )
    if policy.retention_ratio == 1.0 or not any(bound.stage.data_dependent for bound in reducing):
        return []
    text = f"{where}: removed none of {shape.total} visual tokens."
    warnings.warn(text, stacklevel=4)
    return [text]


def _expected(policy: "Policy", bound: "BoundStage", shape: VideoShape) -> int:
    """The most visual tokens the stage should leave of all that there are."""
    if bound is policy.closer and not bound.fixed and policy.retention_ratio is not None:
        return tokens_to_keep(shape.total, policy.retention_ratio)
    return round(bound.stage.attainable(shape)[1] * shape.total)
