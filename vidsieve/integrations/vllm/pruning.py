"""What every served model shares: a processor that counts kept tokens, and a model whose videos are shortened."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vidsieve.framework.errors import RetentionError
from vidsieve.integrations.vllm.places import grid_places, place_media, with_places
from vidsieve.integrations.vllm.plugin import served


class CountingProcessor:
    """Mixed into a model's processor: prompts hold as many placeholders as the policy leaves tokens."""

    def kept(self, grid: tuple[int, int, int]) -> int:
        """Visual tokens that stay of a video with this grid.

        Raises:
            ValueError: the policy's ratio is out of reach on it; the server answers that request with the sentence.
        """
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

    def place_rows(self, rows: Tensor, index: Tensor, grid: tuple[int, int, int], time_factor: float) -> Tensor:
        """Rows as the encoder cache holds them: with their places."""
        return with_places(rows, grid_places(index, grid, time_factor))

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Number the short prompt as the whole one; what stands at a kept video token is put in when it is encoded."""
        ordered = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        grids = self.iter_mm_grid_thw(ordered)  # type: ignore[attr-defined]
        pieces, at, following = [], 0, 0
        for feature, (offset, time, height, width, factor) in zip(ordered, grids, strict=True):
            text = offset - at
            pieces.append(torch.arange(text).expand(3, -1) + following)
            following += text
            index = torch.arange(time * height * width)
            whole = grid_places(index, (time, height, width), factor) + following
            pieces.append(whole[:, : feature.mm_position.length])
            at, following = offset + feature.mm_position.length, int(whole.max()) + 1
        text = len(input_tokens) - at
        pieces.append(torch.arange(text).expand(3, -1) + following)
        return torch.cat(pieces, dim=1), following + text - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the places off the rows of this chunk and put them into the prompt's positions."""
        tokens = len(input_ids)
        # the last token of a prompt is text, and so knows where the whole prompt ends
        delta = int(mrope_positions[:, tokens - 1].max()) + 1 - tokens
        if not len(multimodal_embeddings):
            return multimodal_embeddings, mrope_positions, delta
        config = self.config  # type: ignore[attr-defined]
        ids = torch.as_tensor(input_ids)
        is_media = (ids == config.video_token_id) | (ids == config.image_token_id)
        rows, positions = place_media(
            mrope_positions, is_media.cpu(), num_computed_tokens, multimodal_embeddings, self.row_width
        )
        return rows, positions, delta

    @property
    def row_width(self) -> int:
        """Columns of a row as the language model takes it."""
        return int(self.config.get_text_config().hidden_size)  # type: ignore[attr-defined]


def updates_for_videos(updates: Sequence[Any], video: Any) -> list[Any]:
    """A processor's prompt updates with the one for videos filled by `video`."""
    return [replace(one, replacement=video) if one.modality == "video" else one for one in updates]
