"""Questions and clips to the tensors of `model.generate`: the interface, our own way, and transformers' behind it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from vidsieve.framework.errors import InputError
from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoded, Encoder
from vidsieve.media.pixels import covered
from vidsieve.media.prompter import Prompter


class Processor(ABC):
    """Builds model inputs. `kind` says whose code does it."""

    kind: ClassVar[Literal["vidsieve", "transformers"]]

    def __init__(self, prompter: Prompter) -> None:
        self.prompter = prompter

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, for decoding answers."""
        return self.prompter.tokenizer

    def build_inputs(self, prompts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        """Build what `model.generate(**inputs)` takes, on the CPU, for a batch of `prompts`.

        prompts: questions, put into the chat template; or finished prompts with one placeholder a video.
        clips: for each prompt the videos it is about, perhaps none.
        Rows are padded on the left. `mm_token_type_ids` (0 text, 1 image, 2 video) is there for the families
        that take it; the others' `generate` refuses it.
        Raises InputError where prompts, clips and placeholders do not fit together.
        """
        return self._build(self._texts(prompts, clips), clips)

    def build_written(self, texts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        """Do as `build_inputs`, with prompts that `prompter` has written."""
        return self._build(texts, clips)

    def _texts(self, prompts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> list[str]:
        """Write the finished prompts."""
        if len(prompts) != len(clips) or not prompts:
            raise InputError(
                f"build_inputs: one list of clips for each prompt, got {len(prompts)} prompts and "
                f"{len(clips)} lists; give an empty list to a prompt without video"
            )
        return [self.prompter.text(p, len(c)) for p, c in zip(prompts, clips, strict=True)]

    def build_shared(
        self, prompts: Sequence[str], clips: Sequence[Clip]
    ) -> tuple[dict[str, Tensor], list[Int[Tensor, " _"]]]:
        """Build the inputs of the first of several prompts about the same `clips`, and the `input_ids` of each.

        Raises InputError as `build_inputs`.
        """
        built = [self.build_inputs([prompt], [clips]) for prompt in prompts]
        return built[0], [one["input_ids"][0] for one in built]

    @abstractmethod
    def describe(self) -> str:
        """Describe in one line: whose code, frame size, and why not transformers' own if that is so."""

    def seen(self, frames: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "frames 3 rows columns"]:
        """Cut out of the frames the part that the model's visual tokens cover: all of it, or the centre."""
        return frames

    @property
    def token_pixels(self) -> int | None:
        """Pixels of a frame that one visual token stands for; None where every frame has one size, or it is unknown."""
        return None

    def capped(self, max_pixels: int) -> "Processor | None":
        """Make one like this for frames of at most `max_pixels`; None for frames of one size, or of unknown size."""
        return None

    @abstractmethod
    def _build(self, texts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        """Build the tensors of finished prompts."""


class VidsieveProcessor(Processor):
    """Ours: torch alone, equal to transformers' processors bit for bit."""

    kind = "vidsieve"

    def __init__(self, prompter: Prompter, encoder: Encoder, *, reason: str = "") -> None:
        super().__init__(prompter)
        self.encoder, self.reason = encoder, reason

    @property
    def token_pixels(self) -> int | None:
        return self.encoder.token_pixels

    def describe(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"Vidsieve's preprocessing, {self.encoder.describe()}{why}"

    def seen(self, frames: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "frames 3 rows columns"]:
        return self.encoder.seen(frames)

    def capped(self, max_pixels: int) -> "VidsieveProcessor | None":
        encoder = self.encoder.capped(max_pixels)
        return None if encoder is None else VidsieveProcessor(self.prompter, encoder, reason=self.reason)

    def build_shared(
        self, prompts: Sequence[str], clips: Sequence[Clip]
    ) -> tuple[dict[str, Tensor], list[Int[Tensor, " _"]]]:
        texts = [self.prompter.text(prompt, len(clips)) for prompt in prompts]
        encoded = self.encoder.encode(clips) if clips else None
        rows = [self.prompter.expand(text, clips, encoded, 0) for text in texts]
        return self._inputs(rows[:1], encoded), rows

    def build_around(
        self, prompts: Sequence[str], clips: Sequence[Sequence[Clip]], encoded: Encoded
    ) -> dict[str, Tensor]:
        """Do as `build_inputs`, around videos that `encoder` made tensors of before; the clips may have no pixels."""
        self.encoder.check_together([clip for row in clips for clip in row])
        return self._around(self._texts(prompts, clips), clips, encoded)

    def _build(self, texts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        videos = [clip for row in clips for clip in row]
        return self._around(texts, clips, self.encoder.encode(videos) if videos else None)

    def _around(
        self, texts: Sequence[str], clips: Sequence[Sequence[Clip]], encoded: Encoded | None
    ) -> dict[str, Tensor]:
        rows, first = [], 0
        for text, row in zip(texts, clips, strict=True):
            rows.append(self.prompter.expand(text, row, encoded, first))
            first += len(row)
        return self._inputs(rows, encoded)

    def _inputs(self, rows: Sequence[Int[Tensor, " _"]], encoded: Encoded | None) -> dict[str, Tensor]:
        inputs = {**self.prompter.pad(rows), **(encoded.tensors if encoded else {})}
        return inputs | self.prompter.token_types(inputs["input_ids"])


class TransformersProcessor(Processor):
    """transformers' own, which needs a working torchvision; decoding, sampling and the prompt's text are ours."""

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

    def seen(self, frames: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "frames 3 rows columns"]:
        video = self.hf_processor.video_processor
        size, crop = getattr(video, "size", None) or {}, getattr(video, "crop_size", None) or {}
        if not getattr(video, "do_center_crop", False) or "shortest_edge" not in size or "height" not in crop:
            return frames
        return covered(frames, size["shortest_edge"], crop["height"], crop["width"])

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
