"""How many visual tokens of a video stay in the prompt, told from its shape before anybody has seen it."""

from vidsieve.framework.composition import BoundStage, Composition
from vidsieve.framework.errors import RetentionError
from vidsieve.framework.hookspecs import REDUCING_HOOKS
from vidsieve.framework.planning.attainable import check_attainable
from vidsieve.framework.plans import tokens_to_keep
from vidsieve.framework.records import VideoShape


def count_fault(policy: Composition) -> str | None:
    """Why the count of `policy` does not follow from the shape of a video; None where it does.

    Stages inside the language model do not change the prompt and are not looked at.
    """
    before = _reducing(policy)
    for bound in before:
        if not bound.stage.count_from_shape():
            return f"how many tokens stage {bound.label!r} leaves depends on what the video shows"
    budgets = [bound for bound in policy.video_stages if bound.runs("budget_frames")]
    if budgets and not policy.exact:
        return f"with `exact: false` stage {budgets[0].label!r} may decide counts by what the video shows"
    among_tokens = [bound for bound in before if bound.runs(*REDUCING_HOOKS)]
    if len(among_tokens) > 2 or (len(among_tokens) == 2 and among_tokens[-1].fixed):
        label = among_tokens[1].label
        return f"stage {label!r} counts by what is left of each frame, which depends on what the video shows"
    return None


def kept_tokens(policy: Composition, shape: VideoShape) -> int:
    """How many visual tokens of a video of `shape` the policy leaves in the prompt.

    Raises:
        RetentionError: the count does not follow from the shape, or the ratio is out of reach on it.
    """
    fault = count_fault(policy)
    if fault is not None:
        raise RetentionError(f"policy {policy.name!r}: the count of tokens is not known beforehand: {fault}.")
    ratio, total = policy.retention_ratio, shape.total
    if not policy.layer_stages:
        check_attainable(policy, shape)
    wanted = None if ratio is None else tokens_to_keep(total, ratio)
    units, alive = shape.frames, total
    for bound in _reducing(policy):
        solved = bound is policy.counter and not bound.fixed and ratio is not None
        if bound.runs("reduce_frames"):
            if solved:
                assert ratio is not None
                units = min(units, tokens_to_keep(shape.frames, ratio))
            else:
                units = round(bound.stage.attainable(VideoShape(units, 1))[0] * units)
            alive = units * shape.tokens
        elif solved:
            assert wanted is not None
            alive = min(alive, wanted)
        else:
            alive = round(bound.stage.attainable(VideoShape(units, shape.tokens))[0] * alive)
    return alive


def _reducing(policy: Composition) -> list[BoundStage]:
    """The stages that shorten the prompt, in the order they act: before the vision tower, then on its tokens."""
    return [*policy.frame_stages, *(bound for bound in policy.video_stages if bound.runs(*REDUCING_HOOKS))]
