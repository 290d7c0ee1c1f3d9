"""transformers' own processor behind our interface. It needs a working torchvision."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from vidsieve.media.clip import Clip
from vidsieve.media.processor import Processor
from vidsieve.media.prompter import Prompter


class TransformersProcessor(Processor):
    """Decoding, sampling and the prompt's text are ours; pixels, placeholders and ids are transformers'."""

    kind = "transformers"

    def __init__(self, prompter: Prompter, hf_processor: Any) -> None:
        super().__init__(prompter)
        self.hf_processor = hf_processor

    @classmethod
    def build(
        cls, checkpoint: str | Path, model_config: PretrainedConfig, prompter: Prompter, revision: str | None
    ) -> "TransformersProcessor":
        """Build it and try it on two grey frames. Raises whatever transformers raises."""
        import torchvision  # noqa: F401  # half-installed it breaks later, and less clearly
        from transformers import AutoProcessor

        hf_processor = AutoProcessor.from_pretrained(str(checkpoint), revision=revision or "main")
        _complete(hf_processor, model_config, prompter)
        video_processor = hf_processor.video_processor
        if hasattr(type(video_processor), "cap_pixels_per_frame") and video_processor.cap_pixels_per_frame is None:
            video_processor.cap_pixels_per_frame = False  # what None means today, said aloud
        processor = cls(prompter, hf_processor)
        grey = torch.full((2, 3, 56, 56), 128, dtype=torch.uint8)
        processor.build_inputs(["?"], [[Clip.from_frames(grey, fps=1)]])
        return processor

    def describe(self) -> str:
        return f"transformers' {type(self.hf_processor).__name__}"

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
    hf_processor.video_token = prompter.video_token
    if not prompter.spelling.video:
        hf_processor.video_token_id = getattr(model_config, "video_token_id", None)
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
