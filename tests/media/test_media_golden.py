"""Our tensors against those of transformers' own processors, stored by scripts/make_media_golden.py."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from media.golden_cases import CASES, Case, Video
from transformers import AutoConfig

from vidsieve.media import Clip, Processor, load_processor
from vidsieve.media.encoder import build_encoder
from vidsieve.media.processor import VidsieveProcessor
from vidsieve.media.settings import Settings, load_settings

DATA = Path(__file__).parents[1] / "data" / "media"


@cache
def stored() -> dict[str, torch.Tensor]:
    with np.load(DATA / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def clip_of(video: Video) -> Clip:
    index = torch.from_numpy(video.frame_index)
    frames = torch.from_numpy(video.frames)
    return Clip(frames, index / video.fps, video.fps, video.total / video.fps, "pattern", index, video.total)


def processor_of(case: Case) -> Processor:
    """Ours, from the family's folder, with the settings the case changes."""
    folder = DATA / case.family
    config = AutoConfig.from_pretrained(folder)
    processor = load_processor(folder, config, prefer_hf=False)
    if not case.video:
        return processor
    settings = load_settings(folder)
    if case.big and case.family.startswith("llava"):
        config.vision_config.patch_size = 14
        config.vision_config.image_size = 384 if case.family == "llava_onevision" else 336
    changed = Settings({**settings.video, **case.video}, settings.processor, settings.chat_template)
    encoder = build_encoder(config, changed, None)
    assert encoder is not None
    return VidsieveProcessor(processor.prompter, encoder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.name}")
def test_inputs_equal_those_of_transformers(case: Case) -> None:
    inputs = processor_of(case).build_inputs(case.prompts, [[clip_of(video) for video in row] for row in case.videos])
    if case.big:
        pixels = inputs.pop("pixel_values_videos")
        digest = hashlib.sha256(pixels.numpy().tobytes()).digest()
        inputs["pixels_shape"] = torch.tensor(pixels.shape)
        inputs["pixels_sha256"] = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    prefix = f"{case.family}/{case.name}/"
    expected = {k.removeprefix(prefix): v for k, v in stored().items() if k.startswith(prefix)}
    assert inputs.keys() == expected.keys()
    different = [k for k, v in expected.items() if not torch.equal(inputs[k], v)]
    assert not different
