"""Where the visual tokens of each video lie among the feature rows that a model's vision side makes.

Pure arithmetic on shapes and grids, so that a prompt that does not fit its videos is refused before anything runs.

Where frames are images to a family, its processor gives frames and images alike, so the prompt itself has to tell.
Images that stand close behind each other, one frame's length each and introduced by the same token, are the frames of
a video; all others are images, which are never cut. `mm_token_type_ids` (0 text, 1 image, 2 video), where given, says
it outright. Where frames are numbered, one that is introduced as the first was begins another video.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from vidsieve.framework.errors import InputError

PACES = ("second_per_grid_ts", "video_second_per_grid")
"""Inputs that tell the seconds between the steps of each video's grid, as families call them."""


@dataclass(frozen=True)
class VideoLayout:
    """One video's feature rows: in each frame `lead` rows and `tokens` visual tokens, then `structural` rows.

    `frames` are the units the vision tower encodes (a temporal patch for Qwen-VL). `grid` is (t, h, w) in visual
    tokens. Lead rows (the [CLS] of Video-LLaVA) and structural rows (the newline of LLaVA-OneVision, or a whole image)
    are never removed. `seconds_per_frame` is None if unknown. `alive` marks the visual tokens that the prompt has
    placeholders for, where the family's own processor left some out; None means all.
    """

    frames: int
    tokens: int
    grid: tuple[int, int, int]
    structural: int = 0
    seconds_per_frame: float | None = None
    lead: int = 0
    alive: Any = field(default=None, compare=False)

    @cached_property
    def visual(self) -> int:
        """Rows that a policy may remove."""
        return self.frames * self.tokens

    @cached_property
    def rows(self) -> int:
        """Feature rows in all."""
        return self.visual + self.frames * self.lead + self.structural

    @cached_property
    def placeholders(self) -> int:
        """Placeholders in the prompt: one a feature row, without the visual tokens that are not `alive`."""
        return self.rows - (0 if self.alive is None else self.visual - int(self.alive.sum()))


def grid_layouts(
    config: Any, inputs: Mapping[str, Any], *, merge: Sequence[int] | None = None, temporal: int = 1
) -> list[VideoLayout]:
    """Layouts of models that come with `video_grid_thw` in patches: Qwen-VL and its kin.

    Args:
        merge: for each video, how many patches along an edge become one token; by default as the configuration says.
        temporal: how many steps of the grid in time become one.
    """
    grid = inputs.get("video_grid_thw")
    if grid is None:
        raise InputError(
            "model inputs: a video came without video_grid_thw, so its shape is unknown; pass video_grid_thw as the "
            "processor made it."
        )
    seconds = next((inputs[name] for name in PACES if inputs.get(name) is not None), None)
    layouts = []
    for index, (time, height, width) in enumerate(_rows(grid)):
        side = config.vision_config.spatial_merge_size if merge is None else merge[index]
        shape = (time // temporal, height // side, width // side)
        pace = None if seconds is None else float(seconds[index])
        layouts.append(VideoLayout(shape[0], shape[1] * shape[2], shape, seconds_per_frame=pace))
    return layouts


def square_layouts(
    inputs: Mapping[str, Any], side: int, structural: int, lead: int = 0, rows: Sequence[int] | None = None
) -> list[VideoLayout]:
    """Layouts of models that make `side * side` tokens of every frame, whatever its size: the LLaVA family.

    `rows` says how many feature rows each video has, where neither pixels nor features do.
    """
    tokens = side * side
    layouts = []
    for count in _feature_rows(inputs, lead + tokens, structural) if rows is None else rows:
        frames, rest = divmod(count - structural, lead + tokens)
        if rest or frames < 1:
            raise InputError(
                f"mm_encoder_outputs: a video has {count} feature rows, no whole number of frames of {lead + tokens} "
                f"plus {structural} structural rows; pass the output of get_video_features unchanged."
            )
        layouts.append(VideoLayout(frames, tokens, (frames, side, side), structural, lead=lead))
    return layouts


def _feature_rows(inputs: Mapping[str, Any], tokens: int, structural: int) -> list[int]:
    """Feature rows per video, from the pixels' shape or from features that the caller computed."""
    given = (inputs.get("mm_encoder_outputs") or {}).get("video")
    if given is not None:
        return [rows.shape[:-1].numel() for rows in given.pooler_output]
    pixels = inputs["pixel_values_videos"]
    if getattr(pixels, "ndim", 0) != 5:
        raise InputError(
            "pixel_values_videos: expected one tensor [videos frames channels height width], got "
            f"{tuple(getattr(pixels, 'shape', ())) or type(pixels).__name__}; give all videos of a batch the same "
            "number of frames."
        )
    return [pixels.shape[1] * tokens + structural] * pixels.shape[0]


def _rows(grid: Any) -> Sequence[Sequence[int]]:
    """The grid as Python integers: [[t, h, w], ...]."""
    return grid.tolist() if hasattr(grid, "tolist") else [[int(size) for size in row] for row in grid]


@dataclass(frozen=True)
class _Run:
    """Placeholders without text between them: where they stand in their row, and the ids before them."""

    start: int
    length: int
    intro: tuple[int, ...]
    kind: int

    @property
    def end(self) -> int:
        return self.start + self.length


def picture_layouts(
    config: Any, inputs: Mapping[str, Any], *, side: int, gap: int, tiles: Callable[[Any], int], numbered: int = 0
) -> list[VideoLayout]:
    """Layouts of all pictures of the prompts, row by row; an image has no frames, only structural rows.

    Args:
        side: visual tokens along an edge of a frame.
        gap: most ids between two frames of a video.
        numbered: how many ids before a frame tell its number, the opening token among them; 0 where none do.
        tiles: how many frames `pixel_values` hold; an image may be cut into several of that size.

    Raises:
        InputError: the prompt's placeholders are not as many as the pictures fill.
    """
    ids, types = inputs["input_ids"].tolist(), _types(inputs)
    rows = [_runs(row, config.image_token_id, types[index], numbered) for index, row in enumerate(ids)]
    total, tokens = sum(run.length for row in rows for run in row), side * side
    came = _picture_rows(inputs, tokens, tiles)
    if total != came:
        raise InputError(
            f"model inputs: the prompts have {total} placeholders, but the pictures that came make {came} feature rows "
            f"of {tokens} a frame. Pass input_ids and pictures of one and the same processor call."
        )
    return [layout for row in rows for layout in _layouts(row, side, gap, numbered > 0)]


def run_lengths(ids: Any, token: int) -> list[int]:
    """How many placeholders stand without text between them, run by run, row by row."""
    return [run.length for row in ids.tolist() for run in _runs(row, token, [], 0)]


def _picture_rows(inputs: Mapping[str, Any], tokens: int, tiles: Callable[[Any], int]) -> int:
    """Rows that all pictures have together, from features the caller computed or from the pixels."""
    given = (inputs.get("mm_encoder_outputs") or {}).get("image")
    if given is not None:
        return sum(part.shape[:-1].numel() for part in given.pooler_output)
    return tiles(inputs["pixel_values"]) * tokens


def _types(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Kinds of the columns at hand, where the caller told them; else nothing."""
    given, width = inputs.get("mm_token_type_ids"), inputs["input_ids"].shape[1]
    rows = inputs["input_ids"].shape[0]
    return [[]] * rows if given is None else given[:, -width:].tolist()


def _runs(ids: list[int], token: int, types: list[int], numbered: int) -> list[_Run]:
    """The runs of placeholders in a row."""
    runs = []
    for is_place, group in groupby(range(len(ids)), key=lambda at: ids[at] == token):
        places = list(group)
        if is_place:
            start = places[0]
            kind = types[start] if types else 0
            runs.append(_Run(start, len(places), tuple(ids[max(0, start - max(numbered, 1)) : start]), kind))
    return runs


def _layouts(runs: list[_Run], side: int, gap: int, numbered: bool) -> list[VideoLayout]:
    """Runs of one row as videos and images, in order."""
    layouts: list[VideoLayout] = []
    video: list[_Run] = []
    for run in [*runs, None]:
        restarts = run is not None and numbered and bool(video) and run.intro == video[0].intro
        if video and (run is None or restarts or not _goes_on(video[-1], run, side, gap)):
            layouts += _video(video, side)
            video = []
        if run is None:
            break
        if run.length == side * side and run.kind != 1:
            video.append(run)
        else:
            layouts.append(_image(run.length))
    return layouts


def _goes_on(last: _Run, run: _Run, side: int, gap: int) -> bool:
    """Whether `run` is the next frame of the video that `last` belongs to."""
    alike = run.length == side * side and run.kind == last.kind and run.intro[-1:] == last.intro[-1:]
    return alike and 0 < run.start - last.end <= gap


def _video(frames: list[_Run], side: int) -> list[VideoLayout]:
    """A lone picture is a video of one frame only where the caller said so."""
    if len(frames) == 1 and frames[0].kind != 2:
        return [_image(side * side)]
    return [VideoLayout(len(frames), side * side, (len(frames), side, side))]


def _image(rows: int) -> VideoLayout:
    return VideoLayout(0, 0, (0, 0, 0), structural=rows)
