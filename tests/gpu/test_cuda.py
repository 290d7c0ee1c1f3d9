"""What must hold on a GPU as it does on the CPU. Skipped with a reason where there is no CUDA device."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vidsieve import applied, load_policy
from vidsieve.bundled.bundled_models import get
from vidsieve.bundled.bundled_task import BundledTask
from vidsieve.media import Clip, load_processor
from vidsieve.testing.samples import video_features

pytestmark = pytest.mark.gpu

POLICIES = ("vidcom2", "vidcom2-released", "dycoke", "dycoke-released", "random", "uniform-frames")


@pytest.mark.parametrize("name", POLICIES)
def test_a_plan_is_the_same_on_both_devices(name: str) -> None:
    features = video_features(8, 36, 64)
    policy = load_policy(name)
    here, there = policy.plan(features), policy.plan(features.cuda())
    assert torch.equal(here.keep, there.keep.cpu())


@pytest.fixture(params=["qwen2-vl-tiny", "llava-onevision-tiny"])
def asked(request: pytest.FixtureRequest) -> tuple[Any, dict[str, torch.Tensor]]:
    """A bundled model on the GPU and the inputs of two questions."""
    entry = get(request.param)
    model = AutoModelForImageTextToText.from_pretrained(entry.folder).eval().cuda()
    processor = load_processor(entry.folder, model.config, prefer_hf=False)
    examples = BundledTask("static", frame_count=entry.frame_count).examples("heldout", 2)
    clips = [[Clip.from_frames(example.frames, fps=example.fps)] for example in examples]
    inputs = processor.build_inputs([example.question for example in examples], clips)
    return model, {name: value.cuda() for name, value in inputs.items()}


def test_the_empty_policy_changes_no_bit(asked: tuple[Any, dict[str, torch.Tensor]]) -> None:
    model, inputs = asked
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options)
    with applied(model, load_policy("none")):
        wrapped = model.generate(**inputs, **options)
    assert torch.equal(plain.sequences, wrapped.sequences)
    for one, other in zip(plain.logits, wrapped.logits, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["vidcom2", "dycoke"])
def test_generate_attains_the_ratio_and_times_its_compression(
    asked: tuple[Any, dict[str, torch.Tensor]], name: str
) -> None:
    model, inputs = asked
    with applied(model, load_policy(name, retention_ratio=0.5)) as run:
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    report = run.reports[-1]
    assert report.attained_ratio == 0.5
    assert report.compress_ms > 0
