"""Questions to token ids: chat template, placeholders, left padding, token types."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from vidsieve.framework.errors import InputError

TEXT, IMAGE, VIDEO = 0, 1, 2  # values of mm_token_type_ids


@dataclass(frozen=True, eq=False)
class Prompter:
    """Writes prompts for one model.

    template: Jinja chat template, or None for the plain form, placeholders and then the question.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | dict[str, str] | None
    video_token: str
    video_token_id: int
    image_token_id: int | None

    @classmethod
    def build(
        cls, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, template: str | None
    ) -> "Prompter":
        """The checkpoint's `template` first, then the tokenizer's. InputError without a video placeholder."""
        video_id = getattr(model_config, "video_token_id", None)
        token = None
        if isinstance(video_id, int) and video_id < len(tokenizer):
            token = tokenizer.convert_ids_to_tokens(video_id)
        if not isinstance(video_id, int) or not isinstance(token, str) or token == tokenizer.unk_token:
            raise InputError(
                f"tokenizer: the model's video placeholder has id {video_id}, "
                f"which this tokenizer does not know; use the tokenizer that came with the model"
            )
        image_id = getattr(model_config, "image_token_id", None)
        return cls(tokenizer, template or tokenizer.chat_template, token, video_id, image_id)

    def text(self, question: str, video_count: int) -> str:
        """The whole prompt, one placeholder a video.

        A question that already holds placeholders is taken as the finished prompt, without the template.
        """
        if self.video_token in question:
            return self._checked(question, question, video_count)
        if self.template is None:
            return self._checked(self.video_token * video_count + question, question, video_count)
        content: list[dict[str, Any]] = [{"type": "video"}] * video_count
        rich = self._render([*content, {"type": "text", "text": question}])
        if rich is not None and rich.count(self.video_token) == video_count and question.strip() in rich:
            return rich
        # A template made for text alone knows no list of contents: write the placeholders out for it.
        plain = self._render(self.video_token * video_count + "\n" * bool(video_count) + question)
        return self._checked(plain or "", question, video_count)

    def token_ids(self, text: str) -> list[int]:
        """Ids of a prompt; the beginning-of-sequence token is not doubled where the template wrote it."""
        bos = self.tokenizer.bos_token
        written = bool(bos) and text.startswith(bos)
        return self.tokenizer(text, add_special_tokens=not written)["input_ids"]

    def expand(self, ids: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Each video placeholder repeated as often as its video has visual tokens."""
        row = torch.tensor(ids, dtype=torch.long)
        places = row == self.video_token_id
        if int(places.sum()) != len(tokens):
            raise InputError(
                f"prompt: {len(tokens)} videos were given, but {int(places.sum())} placeholders "
                f"{self.video_token!r} are in it; write one for each video, or none"
            )
        repeats = torch.ones_like(row)
        repeats[places] = torch.tensor(list(tokens), dtype=torch.long)
        return row.repeat_interleave(repeats)

    def pad(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, padded on the left to the longest row."""
        ids = torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=self._pad_id(), padding_side="left"
        )
        masks = [torch.ones_like(row) for row in rows]
        mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True, padding_side="left")
        return {"input_ids": ids, "attention_mask": mask}

    def token_types(self, ids: Tensor) -> Tensor:
        """`mm_token_type_ids`: 0 for text, 1 for image and 2 for video placeholders."""
        types = torch.zeros_like(ids)
        if self.image_token_id is not None:
            types[ids == self.image_token_id] = IMAGE
        types[ids == self.video_token_id] = VIDEO
        return types

    def _pad_id(self) -> int:
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        return 0

    def _render(self, content: Any) -> str | None:
        """The template with one user message, or None where it cannot take such a content."""
        from jinja2 import TemplateError

        message = [{"role": "user", "content": content}]
        template = self.template["default"] if isinstance(self.template, dict) else self.template
        try:
            rendered = self.tokenizer.apply_chat_template(
                message, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            return str(rendered)
        except (TemplateError, TypeError):
            return None

    def _checked(self, text: str, question: str, video_count: int) -> str:
        found = text.count(self.video_token)
        if found != video_count or question.strip() not in text:
            raise InputError(
                f"prompt: {video_count} videos were given, but {found} placeholders {self.video_token!r} "
                f"are in {text[:80]!r}; write one for each video, or none and let the chat template do it"
            )
        return text
