"""What the golden arrays are made of: shared by the script that makes them and the tests that read them.

Only numpy here: the script runs in an environment without this package.
"""

from dataclasses import dataclass, field, replace

import numpy as np


def pattern(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """`count` RGB frames [frames 3 height width], uint8: ramps, a moving edge and noise, from integers alone."""
    t, c, y, x = np.meshgrid(*(np.arange(n, dtype=np.uint64) for n in (count, 3, height, width)), indexing="ij")
    ramp = 3 * x + 5 * y * (c + 1) + 17 * t
    edge = 90 * ((x + 2 * t + np.uint64(seed)) % 11 < 4)
    noise = ((x * 7919 + y * 104729 + t * 1299709 + c * 15485863 + np.uint64(seed) * 32452843) >> 3) % 64
    return ((ramp + edge + noise) % 256).astype(np.uint8)


@dataclass(frozen=True)
class Video:
    """frames, height, width and seed for `pattern`; fps and length of the source it stands for."""

    count: int
    height: int
    width: int
    seed: int = 0
    fps: float = 25.0
    source_frames: int | None = None
    still: bool = False

    @property
    def frames(self) -> np.ndarray:
        made = pattern(self.count, self.height, self.width, self.seed)
        if self.still:  # the second frame stands still, the third moves on one side
            made[1], made[2, :, :, : self.width // 2] = made[0], made[0, :, :, : self.width // 2]
        return made

    @property
    def total(self) -> int:
        return self.source_frames or self.count

    @property
    def frame_index(self) -> np.ndarray:
        return np.arange(self.count, dtype=np.int64) * self.total // self.count


@dataclass(frozen=True)
class Case:
    """One call of a processor. video: settings that differ from the folder's. big: pixels stored as a digest.

    bare: `video` and the patch sizes are all the settings there are.
    """

    name: str
    family: str
    videos: tuple[tuple[Video, ...], ...]
    prompts: tuple[str, ...] = ("what moves",)
    video: dict = field(default_factory=dict)
    big: bool = False
    bare: bool = False


REAL_QWEN = {
    "patch_size": 14,
    "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SHARED_CAP = {"cap_pixels_per_frame": True, "max_video_tokens": 20}
LONG = ("what moves", "where is the red square now")


def cases_of(family: str, extra: tuple[Case, ...] = ()) -> tuple[Case, ...]:
    """The cases every family has, and its own."""
    common = (
        Case("exact", family, ((Video(4, 24, 32),),)),
        Case("odd", family, ((Video(5, 22, 34, 1),),)),
        Case("one", family, ((Video(1, 24, 32, 2),),)),
        Case("up", family, ((Video(3, 7, 11, 3),),)),
        Case("down", family, ((Video(2, 61, 87, 4),),)),
        Case("tall", family, ((Video(2, 90, 20, 5),),)),
        Case("two", family, ((Video(4, 24, 32, 6), Video(4, 32, 24, 7)),)),
        Case("batch", family, ((Video(3, 24, 32, 8),), (Video(3, 24, 24, 9), Video(3, 8, 40, 10))), LONG),
        Case("text", family, ((), (Video(3, 24, 32, 11),)), LONG),
    )
    return common + extra


CASES = (
    *cases_of(
        "qwen2_vl",
        (
            Case("uneven", "qwen2_vl", ((Video(2, 24, 32),), (Video(5, 16, 24),)), LONG),
            Case("shared", "qwen2_vl", ((Video(6, 24, 32),),), video=SHARED_CAP),
            Case("real-up", "qwen2_vl", ((Video(3, 96, 170),),), video=REAL_QWEN, big=True),
            Case("real-down", "qwen2_vl", ((Video(2, 720, 1280),),), video=REAL_QWEN, big=True),
        ),
    ),
    Case("seconds", "qwen2_5_vl", ((Video(2, 24, 32, 0, 30.0, 300), Video(3, 24, 24, 1, 23.976, 1000)),)),
    Case("batch", "qwen2_5_vl", ((Video(1, 24, 32, 2),), (Video(2, 61, 87, 3),)), LONG),
    *cases_of(
        "llava_onevision",
        (
            Case(
                "real",
                "llava_onevision",
                ((Video(2, 360, 640),),),
                video={"size": {"height": 384, "width": 384}},
                big=True,
            ),
        ),
    ),
    *cases_of(
        "llava_next_video",
        (
            Case("border", "llava_next_video", ((Video(2, 24, 32),),), video={"size": {"shortest_edge": 11}}),
            Case(
                "real",
                "llava_next_video",
                ((Video(2, 360, 640),),),
                video={"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
                big=True,
            ),
        ),
    ),
)

LATE = Video(4, 24, 32, 12, fps=2.0, source_frames=420)  # frames at 0, 52.5, 105 and 157.5 seconds
STILL = Video(4, 24, 32, 13, still=True)


def later_cases(family: str, extra: tuple[Case, ...] = (), *, even: bool = False) -> tuple[Case, ...]:
    """Cases of a family whose checkpoint is made by checkpoints.py; all but one with pixels as a digest.

    even: its processor refuses rows of unequal frame counts.
    """
    own = (
        Case("late", family, ((LATE,),)),
        Case("fraction", family, ((Video(3, 24, 32, 14, fps=29.97, source_frames=100),),)),
        Case("defaults", family, ((Video(3, 96, 170, 15),),), bare=True),
    )
    uneven = (Case("uneven", family, ((Video(2, 24, 32),), (Video(5, 16, 24), Video(3, 24, 32))), LONG),)
    found = cases_of(family, own + (() if even else uneven) + extra)
    return tuple(replace(case, big=case.name != "exact" or family == "gemma4") for case in found)


def without(cases: tuple[Case, ...], *names: str) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.name not in names)


CAPPED_QWEN3 = {"cap_pixels_per_frame": True, "max_video_tokens": 6}
LATER = (
    # the processors of Qwen3-VL and GLM-4V refuse a video of one frame
    *without(later_cases("qwen3-vl", (Case("shared", "qwen3-vl", ((Video(6, 24, 32),),), video=CAPPED_QWEN3),)), "one"),
    *without(later_cases("glm4v"), "one"),
    *later_cases("ernie-4.5-vl"),
    *later_cases(
        "videollama3",
        (
            Case("still", "videollama3", ((STILL, Video(2, 24, 32)),)),
            Case("kept", "videollama3", ((STILL,),), video={"use_token_compression": False}),
        ),
    ),
    *later_cases("gemma4", (Case("thin", "gemma4", ((Video(2, 4, 400),),)),)),
    *later_cases("internvl3", even=True),
    # in a batch its processor counts the frames of the longest video for all of them
    *without(
        later_cases("smolvlm2", (Case("bicubic", "smolvlm2", ((Video(2, 24, 32),),), video={"resample": 3}),)), "uneven"
    ),
    *later_cases("video-llava", even=True),
    Case("late", "qwen2.5-omni", ((LATE,),), big=True),
    Case("two", "qwen2.5-omni", ((Video(3, 24, 32), Video(3, 16, 24)),), big=True),
    Case("raw", "internvl3", ((Video(2, 24, 32),),), video={"do_normalize": False}),
)
