"""What is asked of both sides: clips of the bundled task with a question each, in prompts of several kinds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm_models import CLIPS_OF, COUNTED_BY_AXIS, family

from vidsieve.bundled.bundled_models import get
from vidsieve.bundled.bundled_task import BundledTask

NEW_TOKENS = 6
FPS = 3.0
"""A step of two frames lasts two thirds of a second: no whole number of positions where seconds count."""
KINDS = ("one video", "two videos", "image beside video", "video last")


@dataclass(frozen=True)
class Asked:
    """A finished prompt with its pictures: videos [frames height width 3] and images [height width 3], uint8."""

    kind: str
    text: str
    videos: list[np.ndarray]
    images: list[np.ndarray]


def prompts(model: str, frames: int, count: int, seed: int = 1) -> list[Asked]:
    """`count` prompts of every kind about clips cut to their first `frames`."""
    shape = get(CLIPS_OF.get(model, model)).shape
    kinds = len(shape.kinds)
    # another kind of question about each clip
    examples = BundledTask("static", shape=shape).examples("heldout", 2 * count * kinds, seed=seed)[:: kinds + 1]
    clips = [np.ascontiguousarray(one.frames[:frames].permute(0, 2, 3, 1).numpy()) for one in examples]
    video, image, bare = PLACES[family(model)]
    made = []
    for number in range(count):
        first, other = clips[number], clips[-1 - number]
        question = examples[number].question
        for kind, places, videos, images in (
            (KINDS[0], video, [first], []),
            (KINDS[1], video + video, [first, other], []),
            (KINDS[2], image + video, [first], [other[0]]),
        ):
            made.append(Asked(kind, f"<|user|>{places}{question}<|assistant|>", videos, images))
        # no text behind it, so that an answer begins right behind a token that may have gone
        if model not in COUNTED_BY_AXIS:
            made.append(Asked(KINDS[3], f"<|user|>{question}<|assistant|>{bare}", [first], []))
    return made


_QWEN = "<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|>"
PLACES = {
    "qwen": _QWEN,
    "llava": ("<video>", "<image>", "<video>"),
    "internvl3": ("<video>", "<IMG_CONTEXT>", "<video>"),
}
"""By family: what stands for a video, for an image, and for a video with nothing of the prompt behind it."""


def metadata(video: np.ndarray) -> dict[str, Any]:
    """What both are told of a clip."""
    count = len(video)
    return {
        "fps": FPS,
        "duration": count / FPS,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "video_backend": "none",
        "width": video.shape[2],
        "height": video.shape[1],
    }
