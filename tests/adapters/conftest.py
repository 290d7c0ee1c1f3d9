"""What tests of policies on the bundled models share."""

from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from vidsieve.bundled.bundled_models import get
from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.media import Clip, load_processor


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
