"""Video-MME (arXiv:2405.21075): a parquet file of questions, `data/<videoID>.mp4`, `subtitle/<videoID>.srt`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vidsieve.harness.data.benchmarks.annotations import Entry, parquet_entries
from vidsieve.harness.data.benchmarks.layout import Layout, Question, Reading

SUFFIXES = (".mp4", ".MP4", ".mkv")
FOLDERS = ("data", "video", "videos", "")


class VideoMME(Layout):
    """Entries have `videoID`, `question_id`, `question`, lettered `options`, the letter `answer`, and `duration`."""

    name = "Video-MME"
    looks_like = "videomme/*.parquet"

    def annotations(self, root: Path) -> list[Path]:
        return [file for folder in (root / "videomme", root) for file in sorted(folder.glob("*.parquet"))]

    def questions(self, file: Path, reading: Reading) -> Iterator[Question]:
        for entry in parquet_entries(file, reading.root, reading.faults):
            options = _unlettered(entry.options("options"))
            yield Question(
                entry=entry,
                id=entry.text("question_id"),
                video=self._video(entry, reading),
                question=entry.text("question"),
                options=options,
                answer=_lettered(entry, options),
                kind=entry.text("duration"),
            )

    def notices(self, root: Path) -> list[str]:
        return ["Video-MME: subtitles are not used."] if (root / "subtitle").is_dir() else []

    def _video(self, entry: Entry, reading: Reading) -> Path:
        """Find the video, whose suffix is not told."""
        name = entry.text("videoID")
        places = [reading.root / folder / f"{name}{suffix}" for folder in FOLDERS for suffix in SUFFIXES]
        there = next((place for place in places if place.is_file()), None)
        return there or reading.video(entry, "videoID", f"{name}.mp4" if name else "", FOLDERS)


def _unlettered(options: Sequence[str]) -> tuple[str, ...]:
    """Take the letters off, where every option has its own."""
    found = [re.match(r"\(?([A-Z])[.):]\s*(.+)", option, re.DOTALL) for option in options]
    letters = [match and match[1] for match in found]
    if letters != [chr(ord("A") + place) for place in range(len(options))]:
        return tuple(options)
    return tuple(match[2] for match in found if match)


def _lettered(entry: Entry, options: Sequence[str]) -> str:
    """Return the option that a letter names."""
    letter = entry.text("answer")
    place = ord(letter) - ord("A") if len(letter) == 1 else -1
    if letter and options and not 0 <= place < len(options):
        entry.fault("answer", f"must be the letter of one of {len(options)} options, got {letter!r}")
        return ""
    return options[place] if letter and options else ""
