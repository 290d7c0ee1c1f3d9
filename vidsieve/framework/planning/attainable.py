"""Which ratios a policy can reach."""

from vidsieve.framework.errors import RetentionError
from vidsieve.framework.hookspecs import REDUCING_HOOKS
from vidsieve.framework.planning.layers import layer_reach
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.framework.policy.composition import Composition
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import cached_on_owner


# asked for every video of every request, and nearly always about the same few shapes
@cached_on_owner(512)
def attainable(policy: Composition, shape: VideoShape) -> tuple[float, float]:
    """Lowest and highest retention ratio of `policy` on this shape: the product over its reducing stages.

    Layer stages count together, by the mean over decoder layers of the visual tokens entering each.
    """
    low = high = 1.0
    for bound in policy.stages:
        if not bound.runs("prune_layer") and bound.runs("reduce_frames", *REDUCING_HOOKS):
            stage_low, stage_high = bound.stage.attainable(shape)
            low, high = low * stage_low, high * stage_high
    if not policy.layer_stages or shape.layers < 2 or shape.total == 0:
        return low, high
    return layer_reach(policy, shape, low, high)


def check_attainable(policy: Composition, shape: VideoShape) -> None:
    """Refuse a ratio the policy cannot reach on this shape.

    Raises:
        RetentionError: with the attainable range.
    """
    ratio, closer = policy.retention_ratio, policy.closer
    if ratio is None or closer is None or shape.total == 0:
        return
    low, high = attainable(policy, shape)
    wanted = tokens_to_keep(shape.total, ratio)
    # a fixed setting may differ from the ratio by the rounding of one token per frame
    slack = shape.frames if closer.fixed else 0.5
    # over layers the lowest ratio need not be a whole number of tokens, and is itself in reach
    below = wanted < low * shape.total - slack and ratio < low - 1e-9
    above = closer.fixed and wanted > high * shape.total + slack
    if not below and not above:
        return
    reach = f"{low:.4g} to {high:.4g}" if high - low > 1e-9 else f"{low:.4g} only"
    setting = f"; {closer.label}.{closer.stage.solves} is fixed, leave it out to have it solved" if closer.fixed else ""
    raise RetentionError(
        f"policy {policy.name!r}: retention ratio {ratio:g} asked, but on {shape.frames} frames of {shape.tokens} "
        f"visual tokens it reaches {reach}{setting}. Ask for a ratio in that range or use another policy."
    )
