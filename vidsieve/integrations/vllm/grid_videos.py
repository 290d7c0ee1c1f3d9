"""Videos that come as a grid of flat patches: Qwen-VL and its kin."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vidsieve.adapters.towers import GRID_UNITS
from vidsieve.integrations.vllm.numbering import Medium
from vidsieve.integrations.vllm.places import grid_places, with_places
from vidsieve.integrations.vllm.plugin import served
from vidsieve.integrations.vllm.pruning import CountingProcessor, ShorteningModel, updates_for_videos

Grid = tuple[int, int, int]


def token_grid(config: Any, patches: Tensor) -> Grid:
    """The grid (t, h, w) in visual tokens of a grid in patches."""
    time, height, width = patches.tolist()
    merge = config.vision_config.spatial_merge_size
    return time, height // merge, width // merge


class GridProcessor(CountingProcessor):
    """Mixed into a model's processor: a video's placeholders are as many as the policy leaves."""

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        config = self.info.get_hf_config()  # type: ignore[attr-defined]

        def video(item_idx: int) -> list[int]:
            item = out_mm_kwargs["video"][item_idx]
            grid = token_grid(config, item["video_grid_thw"].data)
            return [config.video_token_id] * (self.words(item, grid) + self.kept(grid))

        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        return updates_for_videos(updates, video)

    def words(self, item: Any, grid: Grid) -> int:
        """How many ids the prompt spells the video's frames with, beside its visual tokens."""
        return 0


class GridModel(ShorteningModel):
    """Mixed into a model: videos are shortened behind the vision tower, and before it where frames are chosen."""

    config: Any

    def time_factor(self, seconds: float | None) -> float:
        """Positions that a step in time takes, where it lasts so many seconds."""
        return 1.0

    def steps(self, feature: Any, grid: Grid) -> int:
        """Positions that a video takes from the text behind it."""
        seconds = feature.data.get("second_per_grid_ts")
        factor = self.time_factor(None if seconds is None else float(seconds.data))
        return int(grid_places(torch.arange(grid[0] * grid[1] * grid[2]), grid, factor).max()) + 1

    def media(self, features: Sequence[Any]) -> Iterable[Medium]:
        """Videos have no places until they are encoded; images have."""
        for feature in features:
            grid = token_grid(self.config, feature.data[f"{feature.modality}_grid_thw"].data)
            offset, length = feature.mm_position.offset, feature.mm_position.length
            if feature.modality == "video":
                yield Medium(offset, length, self.steps(feature, grid), torch.zeros(3, length, dtype=torch.long))
            else:
                yield Medium(offset, length, max(grid), grid_places(torch.arange(length), grid, 1.0))

    def _process_video_input(self, video_input: Any) -> tuple[Tensor, ...]:
        if video_input["type"] == "video_embeds":
            raise ValueError("vidsieve: video_embeds were encoded where no policy ran; send the video itself.")
        grids = video_input["video_grid_thw"]
        parts = video_input["pixel_values_videos"].split(grids.prod(-1).tolist())
        return tuple(
            self._shortened({"pixel_values_videos": part, "video_grid_thw": grid[None]}, video_input, number)
            for number, (part, grid) in enumerate(zip(parts, grids, strict=True))
        )

    def _shortened(self, one: Mapping[str, Any], video_input: Any, number: int) -> Tensor:
        """What is left of the video with this number, as the encoder's cache holds it."""
        grid = token_grid(self.config, one["video_grid_thw"][0])
        policy, units = served(), None
        if policy.policy.frame_stages:
            # where the tower itself normalises pixels, the policy must see what the tower sees
            visual = self.visual  # type: ignore[attr-defined]
            seen = visual.input_norm(one["pixel_values_videos"].to(visual.device), torch.float32)
            units = policy.units(GRID_UNITS.pixels(self.config, {**one, "pixel_values_videos": seen})[0])
            [one] = GRID_UNITS.without(one, [units])
        [rows] = super()._process_video_input({"type": "pixel_values_videos", **one})  # type: ignore[misc]
        dim = int(self.config.get_text_config().hidden_size)
        kept, index = policy.rows(rows, grid, dim=dim, units=units)
        return self.finished(kept, index, grid, video_input, number)

    def finished(self, kept: Tensor, index: Tensor, grid: Grid, video_input: Any, number: int) -> Tensor:
        """Rows as the encoder's cache holds them: with their places."""
        seconds = video_input.get("second_per_grid_ts")
        factor = self.time_factor(None if seconds is None else float(seconds[number]))
        return with_places(kept, grid_places(index, grid, factor))
