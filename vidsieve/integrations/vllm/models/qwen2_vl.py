"""Qwen2-VL in vLLM."""

from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vidsieve.integrations.vllm.grid_videos import GridModel, GridProcessor
from vidsieve.integrations.vllm.vllm_internals import GRID_HOOKS, PROCESSOR_HOOKS, require

require(Qwen2VLMultiModalProcessor, *PROCESSOR_HOOKS)
require(Qwen2VLForConditionalGeneration, *GRID_HOOKS)


class Processor(GridProcessor, Qwen2VLMultiModalProcessor):
    """A video's placeholders are as many as the policy leaves."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder)
class VidsieveQwen2VL(GridModel, Qwen2VLForConditionalGeneration):
    """Every step in time takes one position."""
