"""Qwen3-VL in vLLM: each frame stands between its time as text; rows of DeepStack go with their tokens."""

from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vidsieve.integrations.vllm.grid_videos import Grid, GridModel, GridProcessor
from vidsieve.integrations.vllm.places import with_places
from vidsieve.integrations.vllm.plugin import served
from vidsieve.integrations.vllm.spelling import Spelling
from vidsieve.integrations.vllm.vllm_internals import GRID_HOOKS, PROCESSOR_HOOKS, require

require(Qwen3VLMultiModalProcessor, *PROCESSOR_HOOKS, "get_video_repl")
require(Qwen3VLForConditionalGeneration, *GRID_HOOKS)


def spelled(config: Any, tokenizer: Any, timestamps: Any, tokens: int) -> list[int]:
    """A video with so many tokens a frame as the prompt spells it."""
    found: list[int] = Qwen3VLMultiModalProcessor.get_video_repl(
        tokens_per_frame=[tokens] * len(timestamps),
        timestamps=timestamps,
        tokenizer=tokenizer,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        video_token_id=config.video_token_id,
    ).full
    return found


class Processor(GridProcessor, Qwen3VLMultiModalProcessor):
    """A video's placeholders are as many as the policy leaves, and one for each id of the text between its frames."""

    def words(self, item: Any, grid: Grid) -> int:
        return len(spelled(self.info.get_hf_config(), self.info.get_tokenizer(), item["timestamps"].data, 0))


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder)
class VidsieveQwen3VL(GridModel, Qwen3VLForConditionalGeneration):
    """The encoder gives a video with its text, in the order of the prompt."""

    @property
    def row_width(self) -> int:
        return int(self.visual_dim + self.multiscale_dim)

    def steps(self, feature: Any, grid: Grid) -> int:
        words = feature.mm_position.length - served().length(grid)
        return int(words + grid[0] * max(grid[1:]))

    def finished(self, kept: Tensor, index: Tensor, grid: Grid, video_input: Any, number: int) -> Tensor:
        timestamps = video_input["timestamps"][number]
        whole = Spelling(
            spelled(self.config, self._tokenizer, timestamps, grid[1] * grid[2]), self.config.video_token_id
        )
        text = self.language_model.embed_input_ids(whole.text.to(index.device))
        rows, at = whole.woven(text, kept, index)
        return with_places(rows, whole.places(grid).to(at.device)[:, at])
