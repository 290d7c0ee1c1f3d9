"""Adapters are found by themselves, can be read without torch, and unknown models get a list."""

import subprocess
import sys

import pytest
import torch
from adapters.kits import kits

import vidsieve
from vidsieve.adapters.apply import adapter_for
from vidsieve.cli import ls
from vidsieve.framework import registry
from vidsieve.framework.errors import ModelError

FAMILIES = {
    "qwen2-vl": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2.5-vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-omni": "Qwen/Qwen2.5-Omni-7B",
    "qwen3-vl": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3.5": "Qwen/Qwen3.5-27B",
    "internvl3": "OpenGVLab/InternVL3-1B-hf",
    "videollama3": "lkhl/VideoLLaMA3-2B-Image-HF",
    "smolvlm2": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "glm4v": "zai-org/GLM-4.1V-9B-Thinking",
    "ernie-4.5-vl": "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    "gemma4": "google/gemma-4-e2b-it",
    "video-llava": "LanguageBind/Video-LLaVA-7B-hf",
    "llava-onevision": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava-next-video": "llava-hf/LLaVA-NeXT-Video-7B-hf",
}


def test_every_family_is_registered_with_its_default_checkpoint() -> None:
    models = registry.default().models
    assert {family: models[family].default_checkpoint for family in FAMILIES} == FAMILIES
    assert all(models[family].family == family for family in models)


def test_family_names_and_aliases_are_unambiguous() -> None:
    names = [name for adapter in registry.default().models.values() for name in (adapter.family, *adapter.aliases)]
    assert len(names) == len(set(names))


def test_reading_what_adapters_say_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from vidsieve.framework import registry;"
        "print([repr(one) for one in registry.default().models.values()]);"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "qwen2-vl" in told
    assert told.splitlines()[-1] == "[]"


def test_a_model_without_an_adapter_gets_the_list_of_those_that_have_one() -> None:
    with pytest.raises(ModelError, match=r"no adapter for Linear.*Qwen2VLForConditionalGeneration"):
        adapter_for(torch.nn.Linear(1, 1))


def test_a_subclass_of_a_known_model_is_known() -> None:
    from transformers import Qwen2VLForConditionalGeneration

    class Finetuned(Qwen2VLForConditionalGeneration):
        pass

    assert adapter_for(Finetuned.__new__(Finetuned)).family == "qwen2-vl"


def test_where_an_image_may_stand_beside_a_video_is_told_as_the_laws_have_it() -> None:
    told = {row["family"]: row["image beside video"] for row in ls.models(registry.default())}
    found = {family: "images" not in kit.cannot for family, kit in kits().items()}
    assert {family: told[family] for family in found} == found


def test_the_public_doors_are_those_of_this_room() -> None:
    from vidsieve.adapters import apply

    assert vidsieve.applied is apply.applied
    assert vidsieve.compress is apply.compress
