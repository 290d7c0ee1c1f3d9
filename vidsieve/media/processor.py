"""Questions and clips to the tensors of `model.generate`: the interface, and our own way in torch alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vidsieve.framework.errors import InputError
from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoder
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
        """What `model.generate(**inputs)` takes, on the CPU, for a batch of `prompts`.

        prompts: questions, put into the chat template; or finished prompts with one placeholder a video.
        clips: for each prompt the videos it is about, perhaps none.
        Rows are padded on the left. `mm_token_type_ids` (0 text, 1 image, 2 video) is there for the families
        that take it; the others' `generate` refuses it.
        Raises InputError where prompts, clips and placeholders do not fit together.
        """
        if len(prompts) != len(clips) or not prompts:
            raise InputError(
                f"build_inputs: one list of clips for each prompt, got {len(prompts)} prompts and "
                f"{len(clips)} lists; give an empty list to a prompt without video"
            )
        texts = [self.prompter.text(p, len(c)) for p, c in zip(prompts, clips, strict=True)]
        return self._build(texts, clips)

    @abstractmethod
    def describe(self) -> str:
        """One line for the report: whose code, frame size, and why not transformers' own if that is so."""

    @property
    def token_pixels(self) -> int | None:
        """Pixels of a frame that one visual token stands for; None where every frame has one size, or it is unknown."""
        return None

    def capped(self, max_pixels: int) -> "Processor | None":
        """One like this with frames of at most `max_pixels`; None where every frame has one size, or it is unknown."""
        return None

    @abstractmethod
    def _build(self, texts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        """The tensors of finished prompts."""


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

    def capped(self, max_pixels: int) -> "VidsieveProcessor | None":
        encoder = self.encoder.capped(max_pixels)
        return None if encoder is None else VidsieveProcessor(self.prompter, encoder, reason=self.reason)

    def _build(self, texts: Sequence[str], clips: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        videos = [clip for row in clips for clip in row]
        encoded = self.encoder.encode(videos) if videos else None
        rows, first = [], 0
        for text, row in zip(texts, clips, strict=True):
            rows.append(self.prompter.expand(text, row, encoded, first))
            first += len(row)
        inputs = {**self.prompter.pad(rows), **(encoded.tensors if encoded else {})}
        return inputs | self.prompter.token_types(inputs["input_ids"])
