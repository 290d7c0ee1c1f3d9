"""Video-LLaVA: the patches of every frame (16 x 16 at 224 px) behind a [CLS] row, which is structural."""

from collections.abc import Mapping
from typing import Any

from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.layouts import VideoLayout, run_lengths, square_layouts
from vidsieve.adapters.towers import FRAME_UNITS, frame_tower


def layouts(config: Any, inputs: Mapping[str, Any]) -> list[VideoLayout]:
    """Nothing is pooled. Features that the caller computed do not tell one video from the next; the prompt does."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    given = inputs.get("pixel_values_videos") is None
    rows = run_lengths(inputs["input_ids"], config.video_token_id) if given else None
    return square_layouts(inputs, side=side, structural=0, lead=1, rows=rows)


ADAPTER = Adapter(
    family="video-llava",
    model_classes=("VideoLlavaForConditionalGeneration",),
    default_checkpoint="LanguageBind/Video-LLaVA-7B-hf",
    needs=(),
    layouts=layouts,
    units=FRAME_UNITS,
    tower=frame_tower("video_tower", "multi_modal_projector"),
)
