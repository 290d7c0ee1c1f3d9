"""LongVideoBench (arXiv:2407.15754): `lvb_val.json`, `videos/`, `subtitles/`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vidsieve.harness.data.benchmarks.annotations import Entry, json_entries
from vidsieve.harness.data.benchmarks.layout import Layout, Question, Reading


class LongVideoBench(Layout):
    """Entries have `id`, `video_path`, `question`, `candidates` and `correct_choice`, a number from 0."""

    name = "LongVideoBench"
    looks_like = "lvb_val.json"

    def annotations(self, root: Path) -> list[Path]:
        return [file for file in (root / "lvb_val.json",) if file.is_file()]

    def questions(self, file: Path, reading: Reading) -> Iterator[Question]:
        for entry in json_entries(file, reading.root, reading.faults):
            options = entry.options("candidates")
            yield Question(
                entry=entry,
                id=entry.text("id"),
                video=reading.video(entry, "video_path", entry.text("video_path"), ("videos", "")),
                question=entry.text("question"),
                options=options,
                answer=_numbered(entry, options),
                kind=entry.text("question_category"),
            )

    def notices(self, root: Path) -> list[str]:
        return ["LongVideoBench: subtitles are not used; many of its questions refer to them."]


def _numbered(entry: Entry, options: Sequence[str]) -> str:
    """Return the option that a number names."""
    number = entry.fields.get("correct_choice")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < max(1, len(options)):
        entry.fault("correct_choice", f"must be a number from 0 to {max(0, len(options) - 1)}, got {number!r}")
        return ""
    return options[number] if options else ""
