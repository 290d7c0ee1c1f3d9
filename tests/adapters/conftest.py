"""What tests of policies on the bundled models share, and those of calls on one model of each kind of positions."""

from typing import Any

import pytest
from adapters.test_llava_onevision import TestLlavaOnevision as LlavaOnevision
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from transformers import AutoModelForImageTextToText

from vidsieve.bundled.bundled_models import get
from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.media import Clip, load_processor
from vidsieve.testing.adapter_kit import ModelKit, Row, unpatched

_KITS: dict[str, ModelKit] = {"three axes": Qwen2VL(), "one axis": LlavaOnevision()}


@pytest.fixture(scope="module", params=["qwen2-vl-tiny", "llava-onevision-tiny"])
def asked(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """A bundled model, and one question about a clip."""
    entry = get(request.param)
    model = AutoModelForImageTextToText.from_pretrained(entry.folder).eval()
    model.generation_config.eos_token_id = None
    processor = load_processor(entry.folder, model.config, prefer_hf=False)
    (example,) = BundledTask("static", frame_count=entry.frame_count).examples("heldout", 1)
    clip = Clip.from_frames(example.frames, fps=example.fps)
    return model, processor.build_inputs([example.question], [[clip]])


@pytest.fixture(params=_KITS.values(), ids=_KITS)
def kit(request: pytest.FixtureRequest) -> Any:
    """The kit of a family with three position axes, and of one with one."""
    return request.param


@pytest.fixture(scope="session")
def called_models() -> dict[int, Any]:
    """The tiny model of each kit after a call, because transformers installs hooks of its own at a model's first."""
    models = {}
    for each in _KITS.values():
        models[id(each)] = each.build_model()
        unpatched(models[id(each)], each.make_inputs(models[id(each)], Row()))
    return models


@pytest.fixture
def model(kit: Any, called_models: dict[int, Any]) -> Any:
    """The tiny model of the kit, the same in all tests: they may call it, and change nothing of it."""
    return called_models[id(kit)]
