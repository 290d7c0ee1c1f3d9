"""MLVU (arXiv:2406.04264): `json/1_plotQA.json` and its siblings, videos in `video/1_plotQA` and so on."""

import re
from collections.abc import Iterator
from pathlib import Path

from vidsieve.harness.data.benchmarks.annotations import json_entries
from vidsieve.harness.data.benchmarks.layout import Layout, Question, Reading

FILES = re.compile(
    r"\d_(plotQA|needle|ego|count|order|anomaly_reco|topic_reasoning|tutorialQA|sportsQA|sub_scene|summary)"
)


class MLVU(Layout):
    """Entries have `video`, `question`, `answer` and `question_type`; multiple choice has `candidates` too."""

    name = "MLVU"
    looks_like = "json/1_plotQA.json and its siblings"

    def annotations(self, root: Path) -> list[Path]:
        found = [file for folder in (root / "json", root) for file in sorted(folder.glob("*.json"))]
        return [file for file in found if FILES.fullmatch(file.stem)]

    def questions(self, file: Path, reading: Reading) -> Iterator[Question]:
        folders = [f"{above}{file.stem}" for above in ("video/", "videos/", "")]
        for number, entry in enumerate(json_entries(file, reading.root, reading.faults), start=1):
            name = entry.text("video")
            is_open = "candidates" not in entry.fields
            options = () if is_open else entry.options("candidates")
            yield Question(
                entry=entry,
                id=f"{file.stem}-{number}",
                video=reading.video(entry, "video", name, folders),
                question=entry.text("question"),
                options=options,
                answer=entry.one_of("answer", options),
                kind=entry.text("question_type"),
            )
