"""transformers' own processor behind our interface. It needs a working torchvision."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoder
from vidsieve.media.processor import Processor
from vidsieve.media.prompter import Prompter


class TransformersProcessor(Processor):
    """Decoding, sampling and the prompt's text are ours; pixels, placeholders and ids are transformers'."""

    kind = "transformers"

    def __init__(self, prompter: Prompter, hf_processor: Any, encoder: Encoder | None) -> None:
        super().__init__(prompter, resolution_is_fixed=bool(encoder and encoder.resolution_is_fixed))
        self.hf_processor, self.encoder = hf_processor, encoder

    @classmethod
    def build(
        cls,
        checkpoint: str | Path,
        model_config: PretrainedConfig,
        prompter: Prompter,
        encoder: Encoder | None,
        max_pixels: int | None,
        revision: str | None,
    ) -> "TransformersProcessor":
        """Build it and try it on two grey frames. Raises whatever transformers raises."""
        import torchvision  # noqa: F401  # half-installed it breaks later, and less clearly
        from transformers import AutoProcessor

        hf_processor = AutoProcessor.from_pretrained(str(checkpoint), revision=revision or "main")
        _complete(hf_processor, model_config, prompter)
        _cap_pixels(hf_processor.video_processor, encoder, max_pixels)
        processor = cls(prompter, hf_processor, encoder)
        grey = torch.full((2, 3, 56, 56), 128, dtype=torch.uint8)
        processor.build_inputs(["?"], [[Clip.from_frames(grey, fps=1)]])
        return processor

    def describe(self) -> str:
        size = f", {self.encoder.describe()}" if self.encoder else ""
        return f"transformers' {type(self.hf_processor).__name__}{size}"

    def capped(self, max_pixels: int) -> "TransformersProcessor | None":
        encoder = self.encoder.capped(max_pixels) if self.encoder else None
        if encoder is None:
            return None
        hf_processor = copy.copy(self.hf_processor)
        hf_processor.video_processor = copy.deepcopy(hf_processor.video_processor)
        _cap_pixels(hf_processor.video_processor, encoder, max_pixels)
        return TransformersProcessor(self.prompter, hf_processor, encoder)

    def _build(self, texts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        videos = [clip for row in clips for clip in row]
        bos = self.tokenizer.bos_token
        inputs = self.hf_processor(
            text=list(texts),
            videos=[clip.frames for clip in videos] or None,
            video_metadata=[_metadata(clip) for clip in videos] or None,
            do_sample_frames=False,
            add_special_tokens=not (bos and texts[0].startswith(bos)),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {k: v for k, v in inputs.items() if isinstance(v, Tensor) and k != "token_type_ids"}


def _metadata(clip: Clip) -> dict[str, Any]:
    return {
        "total_num_frames": clip.source_frames,
        "fps": clip.fps,
        "duration": clip.duration_s,
        "frames_indices": clip.frame_index.tolist(),
    }


def _complete(hf_processor: Any, model_config: PretrainedConfig, prompter: Prompter) -> None:
    """Fill in what older checkpoints leave to the caller, from the model's own configuration."""
    hf_processor.video_token, hf_processor.video_token_id = prompter.video_token, prompter.video_token_id
    vision = model_config.vision_config
    patch_size = getattr(vision, "patch_size", None)
    defaults = {
        "patch_size": patch_size,
        "vision_feature_select_strategy": getattr(model_config, "vision_feature_select_strategy", None),
    }
    if patch_size and getattr(vision, "image_size", None):
        defaults["num_image_tokens"] = (vision.image_size // patch_size) ** 2
    for name, value in defaults.items():
        if getattr(hf_processor, name, value) is None:
            setattr(hf_processor, name, value)


def _cap_pixels(video_processor: Any, encoder: Encoder | None, max_pixels: int | None) -> None:
    """Give transformers the bounds that our encoder worked out from the same settings and cap."""
    if hasattr(type(video_processor), "cap_pixels_per_frame") and video_processor.cap_pixels_per_frame is None:
        video_processor.cap_pixels_per_frame = False  # what None means today, said aloud
    if max_pixels is None or encoder is None or encoder.resolution_is_fixed:
        return
    low, high = encoder.min_pixels, encoder.max_pixels  # type: ignore[attr-defined]
    video_processor.size = {"shortest_edge": low, "longest_edge": high}
