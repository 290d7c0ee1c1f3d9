"""Which examples a model is measured on."""

from typing import TYPE_CHECKING

from vidsieve.framework.errors import UsageError
from vidsieve.harness.model_choice import Choice
from vidsieve.harness.setup import DEFAULT_QUESTION, Setup

if TYPE_CHECKING:
    from vidsieve.framework.task import Task


def choose_task(setup: Setup, choice: Choice) -> "Task":
    """The user's data, or for a bundled model its own task.

    Raises:
        UsageError: a real checkpoint without data; the message names the two ways.
        DataError, MediaError: data that cannot be used.
    """
    if setup.data is not None:
        from vidsieve.harness.data.labelled import LabelledData

        return LabelledData(setup.data, missing_ok=setup.skip_bad)
    if setup.videos is not None:
        from vidsieve.harness.data.video_folder import VideoFolder

        return VideoFolder(setup.videos, setup.question or DEFAULT_QUESTION)
    if choice.bundled is None:
        rung = " `rung` belongs to the bundled models." if setup.rung else ""
        raise UsageError(
            f"data: {choice.name} has to be measured on videos of yours. Give `data` FILE.jsonl (labelled questions: "
            "the score is accuracy), or `videos` DIR (no labels: the score is agreement with the uncompressed "
            f"model).{rung}"
        )
    from vidsieve.bundled.bundled_models import DEFAULT_RUNG
    from vidsieve.bundled.bundled_task import BundledTask

    frames, shape = _frame_count(setup, choice), choice.bundled.shape
    return BundledTask(setup.rung or DEFAULT_RUNG, frame_count=frames, shape=shape)


def _frame_count(setup: Setup, choice: Choice) -> int:
    """Frames of a bundled clip: what the model was trained with, unless `frames` says."""
    assert choice.bundled is not None
    most = choice.bundled.shape.frames
    if setup.fps is not None:
        raise UsageError(
            f"`fps`: the bundled task's clips are taken by count; give `frames` {most} or {most // 2}, or leave both "
            "out."
        )
    if setup.frames is None:
        return choice.bundled.frame_count
    if setup.frames not in (most, most // 2):
        raise UsageError(f"`frames`: the bundled task has clips of {most} or {most // 2} frames, got {setup.frames}.")
    return setup.frames
