"""Qwen2-VL in vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
    Qwen2VLVideoPixelInputs,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vidsieve.adapters.towers import GRID_UNITS
from vidsieve.integrations.vllm.plugin import served
from vidsieve.integrations.vllm.pruning import CountingProcessor, ShorteningModel, updates_for_videos


class Processor(CountingProcessor, Qwen2VLMultiModalProcessor):
    """A video's placeholders are as many as the policy leaves."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        token = self.info.get_hf_config().video_token_id
        merge = self.info.get_hf_config().vision_config.spatial_merge_size

        def video(item_idx: int) -> list[int]:
            time, height, width = out_mm_kwargs["video"][item_idx]["video_grid_thw"].data.tolist()
            return [token] * self.kept((time, height // merge, width // merge))

        return updates_for_videos(super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs), video)


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder)
class VidsieveQwen2VL(ShorteningModel, Qwen2VLForConditionalGeneration):
    """Videos are shortened behind the vision tower, and before it where the policy chooses frames."""

    def _process_video_input(self, video_input: Any) -> tuple[Tensor, ...]:
        if video_input["type"] == "video_embeds":
            raise ValueError("vidsieve: video_embeds were encoded where no policy ran; send the video itself.")
        grids = video_input["video_grid_thw"]
        sizes = grids.prod(-1).tolist()
        parts = video_input["pixel_values_videos"].split(sizes)
        return tuple(self._shortened(pixels, grid) for pixels, grid in zip(parts, grids, strict=True))

    def _shortened(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """One video's kept rows with their places."""
        one: Mapping[str, Any] = {"pixel_values_videos": pixels, "video_grid_thw": grid[None]}
        policy, units = served(), None
        if policy.policy.frame_stages:
            # where the tower itself normalises pixels, the policy must see what the tower sees
            seen = self.visual.input_norm(pixels.to(self.visual.device), torch.float32)
            units = policy.units(GRID_UNITS.pixels(self.config, {**one, "pixel_values_videos": seen})[0])
            [one] = GRID_UNITS.without(one, [units])
        found = Qwen2VLVideoPixelInputs(type="pixel_values_videos", **one)
        [rows] = super()._process_video_input(found)
        merge = self.config.vision_config.spatial_merge_size
        time, height, width = grid.tolist()
        shape = (time, height // merge, width // merge)
        kept, index = policy.rows(rows, shape, dim=self.row_width, units=units)
        return self.place_rows(kept, index, shape, 1.0)
