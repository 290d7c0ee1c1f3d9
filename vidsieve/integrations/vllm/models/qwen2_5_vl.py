"""Qwen2.5-VL in vLLM: a step in time takes as many positions as its seconds say."""

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vidsieve.integrations.vllm.grid_videos import GridModel, GridProcessor
from vidsieve.integrations.vllm.vllm_internals import GRID_HOOKS, PROCESSOR_HOOKS, require

require(Qwen2_5_VLMultiModalProcessor, *PROCESSOR_HOOKS)
require(Qwen2_5_VLForConditionalGeneration, *GRID_HOOKS)


class Processor(GridProcessor, Qwen2_5_VLMultiModalProcessor):
    """A video's placeholders are as many as the policy leaves."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class VidsieveQwen25VL(GridModel, Qwen2_5_VLForConditionalGeneration):
    """Without seconds a step lasts one, as in transformers."""

    def time_factor(self, seconds: float | None) -> float:
        return float(self.config.vision_config.tokens_per_second * (1.0 if seconds is None else seconds))
