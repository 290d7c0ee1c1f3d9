"""What a model family needs from a clip: the interface, and the family of a model type."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import PretrainedConfig

from vidsieve.framework.errors import UsageError
from vidsieve.media.clip import Clip
from vidsieve.media.settings import Settings


@dataclass(frozen=True, eq=False)
class Encoded:
    """tensors: what `model.generate` takes, all videos together.  tokens: placeholders each video needs."""

    tensors: Mapping[str, Tensor]
    tokens: Sequence[int]


class Encoder(ABC):
    """One family's way from frames to tensors."""

    resolution_is_fixed: ClassVar[bool]  # every frame becomes the same square, whatever its size was
    takes_token_types: ClassVar[bool]  # M-RoPE needs mm_token_type_ids; the others refuse them in generate

    @abstractmethod
    def encode(self, clips: Sequence[Clip]) -> Encoded:
        """The tensors of `clips`, of which there is at least one."""

    @abstractmethod
    def describe(self) -> str:
        """The frame size in a few words."""

    def capped(self, max_pixels: int) -> "Encoder | None":
        """The same with frames of at most `max_pixels`, or one visual token if that is more; None for a fixed size."""
        return None


def build_encoder(model_config: PretrainedConfig, settings: Settings, max_pixels: int | None) -> Encoder | None:
    """The encoder for a model, None for a family without one. `max_pixels` caps the pixels of a frame."""
    from vidsieve.media.llava_encoder import LlavaNextVideoEncoder, LlavaOnevisionEncoder
    from vidsieve.media.qwen2_vl_encoder import Qwen2VLEncoder

    makers: dict[str, Any] = {
        "qwen2_vl": Qwen2VLEncoder.from_settings,
        "qwen2_5_vl": Qwen2VLEncoder.from_settings,
        "llava_onevision": LlavaOnevisionEncoder.from_settings,
        "llava_next_video": LlavaNextVideoEncoder.from_settings,
    }
    maker = makers.get(model_config.model_type)
    return maker(model_config, settings, max_pixels) if maker else None


def check_fixed_size(family: str, height: int, width: int, max_pixels: int | None) -> None:
    """UsageError for a cap below the one frame size that `family` takes."""
    if max_pixels is not None and max_pixels < height * width:
        raise UsageError(
            f"max_pixels: {family} takes every frame at {width} x {height} = {height * width} pixels, "
            f"a cap of {max_pixels} cannot be kept; leave it out and take fewer frames instead"
        )
