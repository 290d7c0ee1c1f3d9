"""Layouts of families to which the frames of a video are images: which of a prompt's images are a video's.

Processors of these families give frames and images alike, so the prompt itself has to tell. Images that stand close
behind each other, one frame's length each and introduced by the same token, are the frames of a video; all others
are images, which are never cut. `mm_token_type_ids` (0 text, 1 image, 2 video), where given, says it outright. Where
frames are numbered, one that is introduced as the first was begins another video.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from vidsieve.adapters.prompt.layouts import VideoLayout
from vidsieve.framework.errors import InputError


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
    came = _feature_rows(inputs, tokens, tiles)
    if total != came:
        raise InputError(
            f"model inputs: the prompts have {total} placeholders, but the pictures that came make {came} feature rows "
            f"of {tokens} a frame. Pass input_ids and pictures of one and the same processor call."
        )
    return [layout for row in rows for layout in _layouts(row, side, gap, numbered > 0)]


def run_lengths(ids: Any, token: int) -> list[int]:
    """How many placeholders stand without text between them, run by run, row by row."""
    return [run.length for row in ids.tolist() for run in _runs(row, token, [], 0)]


def _feature_rows(inputs: Mapping[str, Any], tokens: int, tiles: Callable[[Any], int]) -> int:
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
