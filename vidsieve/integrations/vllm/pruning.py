"""What every served model shares: a processor that counts kept tokens, and a model whose videos are shortened."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor

from vidsieve.framework.errors import RetentionError
from vidsieve.integrations.vllm.numbering import Medium, answer_offset, number_prompt, placed_prompt
from vidsieve.integrations.vllm.plugin import served


class CountingProcessor:
    """Mixed into a model's processor: prompts hold as many placeholders as the policy leaves tokens."""

    _sizing = False

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Made-up videos that the engine sizes itself with: counted whole, since a real one may leave more."""
        self._sizing = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._sizing = False

    def kept(self, grid: tuple[int, int, int]) -> int:
        """Visual tokens that stay of a video with this grid.

        Raises:
            ValueError: the policy's ratio is out of reach on it; the server answers that request with the sentence.
        """
        if self._sizing:
            return prod(grid)
        try:
            return served().length(grid)
        except RetentionError as error:
            raise ValueError(f"vidsieve: {error}") from None

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Caches must not mix what different policies left of one video."""
        told = served().policy.hash
        found = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {modality: [f"{one}-{told}" for one in hashes] for modality, hashes in found.items()}


class ShorteningModel:
    """Mixed into a model with M-RoPE: its text keeps the positions of the whole prompt, kept tokens their own."""

    supports_multimodal_pruning = True

    def media(self, features: Sequence[Any]) -> Iterable[Medium]:
        """The videos and images of a prompt, given as vLLM's features in the order of the prompt."""
        raise NotImplementedError

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Number the short prompt as the whole one; what stands at a kept video token is put in when it is encoded."""
        ordered = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        numbered = number_prompt(len(input_tokens), self.media(ordered))
        return numbered, answer_offset(numbered, len(input_tokens))

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the places off the rows of this chunk and put them into the prompt's positions."""
        tokens = len(input_ids)
        offset = answer_offset(mrope_positions, tokens)
        if not len(multimodal_embeddings):
            return multimodal_embeddings, mrope_positions, offset
        rows, numbered = placed_prompt(
            mrope_positions, tokens, num_computed_tokens, multimodal_embeddings, self.row_width
        )
        return rows, numbered, offset

    def _postprocess_image_embeds_evs(self, images: Any, _: Any) -> Any:
        """vLLM's own pruning would append positions of its own."""
        return images

    def _postprocess_video_embeds_evs(self, videos: Any, _: Any) -> Any:
        """vLLM's own pruning would prune once more."""
        return videos

    @property
    def row_width(self) -> int:
        """Columns of a row as the language model takes it."""
        return int(self.config.get_text_config().hidden_size)  # type: ignore[attr-defined]


def updates_for_videos(updates: Sequence[Any], video: Any) -> list[Any]:
    """A processor's prompt updates with the one for videos filled by `video`."""
    return [replace(one, replacement=video) if one.modality == "video" else one for one in updates]
