"""InternVL3 (as transformers writes it) in vLLM: frames are numbered in text; a prompt counts 0, 1, 2, …."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.tokenizers.registry import cached_tokenizer_from_config

from vidsieve.integrations.vllm.plugin import served
from vidsieve.integrations.vllm.pruning import CountingProcessor, updates_for_videos
from vidsieve.integrations.vllm.spelling import Spelling
from vidsieve.integrations.vllm.vllm_internals import PROCESSOR_HOOKS, require

require(InternS1MultiModalProcessor, *PROCESSOR_HOOKS)
require(InternS1ForConditionalGeneration, "_process_vision_input")


def spelled(tokenizer: Any, frames: int, tokens: int) -> list[int]:
    """A video with so many tokens a frame as the prompt spells it."""
    frame = f"{tokenizer.start_image_token}{tokenizer.video_token}{tokenizer.end_image_token}"
    text = "\n".join(f"Frame{number}: {frame}" for number in range(1, frames + 1))
    ids = tokenizer.encode(text, add_special_tokens=False)
    video = tokenizer.video_token_id
    return [each for one in ids for each in [one] * (tokens if one == video else 1)]


class Processor(CountingProcessor, InternS1MultiModalProcessor):
    """A video's placeholders are as many as the policy leaves, and one for each id of the text between its frames."""

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        tokenizer = self.info.get_tokenizer()
        side = isqrt(self.info.get_hf_processor(**hf_processor_mm_kwargs).image_seq_length)

        def video(item_idx: int) -> list[int]:
            frames = int(out_mm_kwargs["video"][item_idx]["video_num_patches"].data)
            words = len(spelled(tokenizer, frames, 0))
            return [tokenizer.video_token_id] * (words + self.kept((frames, side, side)))

        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return updates_for_videos(updates, video)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=InternS1ProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder)
class VidsieveInternVL(InternS1ForConditionalGeneration):
    """Videos are shortened behind the projector; the encoder gives them with their text."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._tokenizer = cached_tokenizer_from_config(vllm_config.model_config)

    def _process_vision_input(self, image_input: Any) -> Any:
        if image_input["type"] == "video_embeds":
            raise ValueError("vidsieve: video_embeds were encoded where no policy ran; send the video itself.")
        found = super()._process_vision_input(image_input)
        if image_input["type"] != "pixel_values_videos":
            return found
        return tuple(
            self._shortened(rows, int(frames)) for rows, frames in zip(found, image_input["num_patches"], strict=True)
        )

    def _shortened(self, rows: Tensor, frames: int) -> Tensor:
        """One video's kept rows among the rows of its text."""
        tokens = len(rows) // frames
        side = isqrt(tokens)
        kept, index = served().rows(rows, (frames, side, side), dim=rows.shape[1])
        whole = Spelling(spelled(self._tokenizer, frames, tokens), self._tokenizer.video_token_id)
        text = self.language_model.embed_input_ids(whole.text.to(index.device))
        return whole.woven(text, kept, index)[0]
