"""LLaVA-OneVision in vLLM: it numbers a prompt 0, 1, 2, …, so that what is left is numbered anew."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
    LlavaOnevisionVideoPixelInputs,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vidsieve.integrations.vllm.plugin import served
from vidsieve.integrations.vllm.pruning import CountingProcessor, updates_for_videos
from vidsieve.integrations.vllm.vllm_internals import PROCESSOR_HOOKS, require

require(LlavaOnevisionMultiModalProcessor, *PROCESSOR_HOOKS)
require(LlavaOnevisionForConditionalGeneration, "_process_video_pixels")


class Processor(CountingProcessor, LlavaOnevisionMultiModalProcessor):
    """A video's placeholders are as many as the policy leaves, and one for the newline."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        config = self.info.get_hf_config()
        edge = config.vision_config.image_size
        tokens = self.info._get_num_frame_tokens(image_width=edge, image_height=edge)

        def video(item_idx: int) -> list[int]:
            frames = len(out_mm_kwargs["video"][item_idx]["pixel_values_videos"].data)
            return [config.video_token_index] * (self.kept((frames, isqrt(tokens), isqrt(tokens))) + 1)

        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return updates_for_videos(updates, video)


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=LlavaOnevisionProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class VidsieveLlavaOnevision(LlavaOnevisionForConditionalGeneration):
    """Videos are shortened behind the projector, and before the vision tower where the policy chooses frames."""

    def _process_video_pixels(self, inputs: Any) -> list[Tensor]:
        return [self._shortened(video) for video in inputs["pixel_values_videos"]]

    def _shortened(self, pixels: Tensor) -> Tensor:
        """One video's kept rows, and the newline."""
        policy, frames = served(), len(pixels)
        units = policy.units(pixels[:, None])
        edge = self.config.vision_config.image_size
        found = LlavaOnevisionVideoPixelInputs(
            type="pixel_values_videos",
            pixel_values_videos=(pixels if units is None else pixels[units])[None],
            resolve_bindings={"h": edge, "w": edge},
        )
        [rows] = super()._process_video_pixels(found)
        side = isqrt((len(rows) - 1) // (frames if units is None else int(units.sum())))
        kept, _ = policy.rows(rows[:-1], (frames, side, side), dim=rows.shape[1], units=units)
        return torch.cat([kept, rows[-1:]])
