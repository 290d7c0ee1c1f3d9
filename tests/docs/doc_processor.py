"""Stands for `AutoProcessor` where torchvision is not installed: the same calls, served by Vidsieve's preprocessing.

Vidsieve's preprocessing gives the tensors of transformers' own bit for bit (tests/media/test_media_golden.py). Where
torchvision is installed nothing is replaced.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig, BatchFeature, ProcessorMixin
from transformers.pipelines import any_to_any

from vidsieve.media import Clip, load_processor


class ProcessorWithoutTorchvision(ProcessorMixin):
    """What pipelines and the pages ask of a processor, for chats whose videos are frames.

    It is a `ProcessorMixin` in name, because the pipeline asks for one.
    """

    def __init__(self, folder: str | Path) -> None:
        self._ours = load_processor(folder, AutoConfig.from_pretrained(folder))
        self.tokenizer = self._ours.tokenizer
        self.chat_template = self._ours.prompter.template
        self.batch_decode = self.tokenizer.batch_decode

    def apply_chat_template(
        self,
        chat: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        return_dict: bool,
        return_tensors: str,
        continue_final_message: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
    ) -> BatchFeature:
        assert tokenize and return_dict and return_tensors == "pt"
        assert (processor_kwargs or {}) in ({}, {"do_sample_frames": False})
        text = self.tokenizer.apply_chat_template(
            chat, chat_template=self.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        parts = [part for message in chat if not isinstance(message["content"], str) for part in message["content"]]
        clips = [Clip.from_frames(part["video"], fps=8) for part in parts if part["type"] == "video"]
        return BatchFeature(self._ours.build_inputs([text], [clips]))

    def post_process_multimodal_output(self, ids: Any, skip_special_tokens: bool, **_: Any) -> list[str]:
        return self.batch_decode(ids, skip_special_tokens=skip_special_tokens)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `AutoProcessor.from_pretrained` and the pipeline do without torchvision, if it is missing."""
    if find_spec("torchvision") is not None:
        return
    monkeypatch.setattr(
        transformers.AutoProcessor, "from_pretrained", lambda folder, **_: ProcessorWithoutTorchvision(folder)
    )
    monkeypatch.setattr(any_to_any, "requires_backends", lambda *_: None)
