"""Our tensors against those of transformers' own processors, stored by scripts/make_media_golden.py."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters.kits import kits
from media import checkpoints
from media.golden_cases import CASES, LATER, Case, Video
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from vidsieve.media import Clip, Processor
from vidsieve.media.processor import VidsieveProcessor
from vidsieve.media.processor_loading import build_encoder
from vidsieve.media.prompter import Prompter
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


@cache
def config_of(family: str) -> PretrainedConfig:
    return kits()[family]().build_model().config


def processor_of(case: Case) -> Processor:
    """Ours, with the settings the case changes: from the family's folder, or beside the family's tiny model."""
    if case.family in checkpoints.SPECIAL:
        config = config_of(case.family)
        tokenizer, template = checkpoints.tokenizer(case.family), checkpoints.template(case.family)
        settings = Settings(video=({} if case.bare else checkpoints.SETTINGS[case.family]) | BARE | case.video)
    else:
        folder = DATA / case.family
        config, settings = AutoConfig.from_pretrained(folder), load_settings(folder)
        if case.big and case.family.startswith("llava"):
            config.vision_config.patch_size = 14
            config.vision_config.image_size = 384 if case.family == "llava_onevision" else 336
        tokenizer, template = AutoTokenizer.from_pretrained(folder), settings.chat_template
        settings = replace(settings, video={**settings.video, **case.video})
    encoder = build_encoder(config, settings, None, case.family)
    assert encoder is not None
    return VidsieveProcessor(Prompter.build(tokenizer, config, template), encoder)


BARE = {"draw_on_frames": False}


@pytest.mark.parametrize("case", [*CASES, *LATER], ids=lambda case: f"{case.family}-{case.name}")
def test_inputs_equal_those_of_transformers(case: Case) -> None:
    inputs = processor_of(case).build_inputs(case.prompts, [[clip_of(video) for video in row] for row in case.videos])
    if case.big:
        name = "pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"
        pixels = inputs.pop(name)
        digest = hashlib.sha256(pixels.numpy().tobytes()).digest()
        inputs["pixels_shape"] = torch.tensor(pixels.shape)
        inputs["pixels_sha256"] = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    prefix = f"{case.family}/{case.name}/"
    expected = {k.removeprefix(prefix): v for k, v in stored().items() if k.startswith(prefix)}
    assert inputs.keys() == expected.keys()
    different = [k for k, v in expected.items() if not torch.equal(inputs[k], v)]
    assert not different
