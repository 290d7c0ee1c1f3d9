"""MVBench (arXiv:2311.17005): `json/<task>.json` for twenty tasks, videos in the folders of their sources."""

from collections.abc import Iterator
from pathlib import Path

from vidsieve.harness.data.benchmarks.annotations import json_entries
from vidsieve.harness.data.benchmarks.layout import Layout, Question, Reading

VIDEOS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
"""Each task's folder of videos in the first release."""
CONVERTED = {
    "action_antonym": "ssv2_video_mp4",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_pose": "nturgbd_convert",
    "object_interaction": "star/Charades_segment",
}
"""Folders of the `video` revision, the one lmms-eval reads: other encodings, and videos cut to the part asked about."""
ABOVE = ("video", "", "videos", "data0613")
CUT_MISSING = "name a part of their video (start, end), and its cut video is not here"
FRAMES = "have their video as a folder of pictures"


class MVBench(Layout):
    """Entries have `video`, `question`, `candidates` and `answer`, and some `start` and `end` in seconds."""

    name = "MVBench"
    looks_like = "json/action_sequence.json and its siblings"

    def annotations(self, root: Path) -> list[Path]:
        return [
            file for folder in (root / "json", root) for file in sorted(folder.glob("*.json")) if file.stem in VIDEOS
        ]

    def questions(self, file: Path, reading: Reading) -> Iterator[Question]:
        task = file.stem
        cut = [f"{above}/{CONVERTED[task]}".lstrip("/") for above in ABOVE if task in CONVERTED]
        first = [f"{above}/{VIDEOS[task]}".lstrip("/") for above in ABOVE]
        for number, entry in enumerate(json_entries(file, reading.root, reading.faults), start=1):
            name, options = entry.text("video"), entry.options("candidates")
            is_part = {"start", "end"} <= entry.fields.keys()
            video = reading.video(entry, "video", name, [*cut, *first])
            if is_part and video.exists() and not any(reading.root / folder in video.parents for folder in cut):
                reading.left_out[FRAMES if video.is_dir() else CUT_MISSING] += 1
                continue
            yield Question(
                entry=entry,
                id=f"{task}-{number}",
                video=video,
                question=entry.text("question"),
                options=options,
                answer=entry.one_of("answer", options),
                kind=task,
            )
