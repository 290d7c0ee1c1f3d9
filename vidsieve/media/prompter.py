"""Questions to token ids: chat template, placeholders and the text around them, left padding, token types.

The texts around placeholders are those of transformers' processors of the same families (transformers 5.23,
Apache-2.0); times are counted as they count them, by frame number and mean rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from vidsieve.framework.errors import InputError
from vidsieve.media.clip import Clip
from vidsieve.media.encoder import Encoded

TEXT, IMAGE, VIDEO = 0, 1, 2  # values of mm_token_type_ids
VIDEO_PART = {"type": "video"}
Around: TypeAlias = tuple[str, str]
"""The text before a run of placeholders and the text after it."""
Write: TypeAlias = Callable[[Mapping[str, str], Clip, int, int], Sequence[Around]]
"""(special tokens by name, clip, number of runs, frames in a run) -> the text around each run."""
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: {% for part in message['content'] %}"
    "{{ '<video>' if part['type'] == 'video' else part['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """A family's way of writing.

    write: the text around each run of a video's placeholders.
    visual: whose token the placeholders are, by the name of its id in the model's configuration.
    video: the text that stands for a whole video until it is written out; None: the token of the configuration.
    tokens: special tokens that `write` uses, by their names in tokenizer and configuration, and what they usually are.
    types: inputs that say which tokens are visual; families without M-RoPE refuse them in `generate`.
    template: the chat template for videos, whatever the checkpoint's own; None: the checkpoint's.
    around: the text around a whole video that the model needs, where no chat template writes it.
    adds_video: the video's token, where the tokenizer may not know it as a special one.
    """

    write: Write
    visual: Literal["video", "image"] = "video"
    video: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    template: str | None = None
    around: Around = ("", "")
    adds_video: str | None = None


@dataclass(frozen=True, eq=False)
class Prompter:
    """Writes prompts for one model.

    template: Jinja chat template, or None for the plain form, placeholders and then the question.
    video_token: what stands for a whole video in the text.  visual_token_id: what stands for one visual token.
    tokens: the special tokens of the spelling, by name.  around_ids: ids that Ernie's experts take for visual, by type.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | dict[str, str] | None
    spelling: Spelling
    video_token: str
    visual_token: str
    visual_token_id: int
    image_token_id: int | None
    tokens: Mapping[str, str]
    around_ids: Mapping[int, Sequence[int]]

    @classmethod
    def build(
        cls, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, template: str | None
    ) -> "Prompter":
        """Build from the checkpoint's `template`, else the tokenizer's. Raises InputError for missing placeholders."""
        spelling = spelling_of(model_config)
        if spelling.adds_video:
            # the token has its place in the vocabulary, but older tokenizers do not list it as a special one
            tokenizer.add_tokens(spelling.adds_video, special_tokens=True)
        visual_id = getattr(model_config, f"{spelling.visual}_token_id", None)
        visual = _token(tokenizer, visual_id, spelling.visual)
        video = spelling.video and (getattr(tokenizer, "video_token", None) or spelling.video)
        own_id = getattr(model_config, "video_token_id", None)
        tokens = {name: _special(tokenizer, model_config, name, usual) for name, usual in spelling.tokens.items()}
        around = {}
        for kind, name in ((IMAGE, "image"), (VIDEO, "video")):
            ids = [getattr(model_config, f"{name}_{end}_token_id", None) for end in ("start", "end")]
            around[kind] = [token_id for token_id in ids if token_id is not None]
        return cls(
            tokenizer=tokenizer,
            template=template or tokenizer.chat_template,
            spelling=spelling,
            video_token=video or _token(tokenizer, own_id, "video"),
            visual_token=visual,
            visual_token_id=int(visual_id),  # type: ignore[arg-type]
            image_token_id=getattr(model_config, "image_token_id", None),
            tokens=tokens,
            around_ids=around,
        )

    def text(self, question: str, video_count: int) -> str:
        """Write the whole prompt, one placeholder a video.

        A question that already holds placeholders is taken as the finished prompt, without the template.
        """
        if self.video_token in question:
            return self._checked(question, [question], video_count)
        content = [VIDEO_PART] * video_count + [{"type": "text", "text": question}]
        return self.conversation([{"role": "user", "content": content}])

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write a prompt of several turns, which the model's own turn follows.

        messages: each with a `role` and a list `content` of `{"type": "video"}` and `{"type": "text", "text": ...}`.
        Raises InputError where the template cannot write them, or a text holds placeholders.
        """
        parts = [part for message in messages for part in message["content"]]
        texts = [str(part["text"]) for part in parts if part["type"] == "text"]
        video_count = len(parts) - len(texts)
        if self._template(video_count) is None:
            return self._checked(self._written(parts, ""), texts, video_count)
        rich = self._render(messages, video_count)
        if rich is not None and rich.count(self.video_token) == video_count and _holds(rich, texts):
            return rich
        # A template made for text alone knows no list of contents: write the placeholders out for it.
        plain = [{"role": one["role"], "content": self._written(one["content"], "\n")} for one in messages]
        return self._checked(self._render(plain, video_count) or "", texts, video_count)

    def _written(self, parts: Sequence[Mapping[str, Any]], gap: str) -> str:
        """Write parts in a row, with `gap` where a text follows a video."""
        before, after = self.spelling.around
        video, written, follows = f"{before}{self.video_token}{after}", "", False
        for part in parts:
            is_video = part["type"] == "video"
            written += video if is_video else gap * follows + str(part["text"])
            follows = is_video
        return written

    def token_ids(self, text: str) -> list[int]:
        """Tokenise a prompt; the beginning-of-sequence token is not doubled where the template wrote it."""
        bos = self.tokenizer.bos_token
        written = bool(bos) and text.startswith(bos)
        return self.tokenizer(text, add_special_tokens=not written)["input_ids"]

    def expand(self, text: str, clips: Sequence[Clip], encoded: Encoded | None, first: int) -> Tensor:
        """Tokenise a finished prompt whose videos are the clips of `encoded` from number `first` on.

        Raises:
            InputError: the prompt has not one placeholder for each clip, or visual tokens of its own.
        """
        parts = text.split(self.video_token)
        if len(parts) != len(clips) + 1:
            raise InputError(
                f"prompt: {len(clips)} videos were given, but {len(parts) - 1} placeholders "
                f"{self.video_token!r} are in it; write one for each video, or none"
            )
        lengths: list[int] = []
        written = [parts[0]]
        for number, (clip, after) in enumerate(zip(clips, parts[1:], strict=True), start=first):
            assert encoded is not None
            runs = encoded.runs[number]
            around = self.spelling.write(self.tokens, clip, len(runs), encoded.run_frames)
            written += [f"{before}{self.visual_token}{behind}" for before, behind in around]
            written.append(after)
            lengths += runs
        return self._repeat(self.token_ids("".join(written)), lengths)

    def _repeat(self, ids: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Repeat each visual token of `ids` to a run of its length."""
        row = torch.tensor(ids, dtype=torch.long)
        places = row == self.visual_token_id
        if int(places.sum()) != len(lengths):
            raise InputError(
                f"prompt: the videos have {len(lengths)} runs of visual tokens, but {int(places.sum())} tokens "
                f"{self.visual_token!r} are in it; leave them out of the question, and use the model's own tokenizer"
            )
        repeats = torch.ones_like(row)
        repeats[places] = torch.tensor(list(lengths), dtype=torch.long)
        return row.repeat_interleave(repeats)

    def pad(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pad `input_ids` and `attention_mask` on the left to the longest row."""
        ids = torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=self._pad_id(), padding_side="left"
        )
        masks = [torch.ones_like(row) for row in rows]
        mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True, padding_side="left")
        return {"input_ids": ids, "attention_mask": mask}

    def token_types(self, ids: Tensor) -> dict[str, Tensor]:
        """Make the family's inputs that say which tokens are visual: 0 for text, 1 for image and 2 for video."""
        types = torch.zeros_like(ids)
        if self.image_token_id is not None:
            types[ids == self.image_token_id] = IMAGE
        types[ids == self.visual_token_id] = VIDEO
        experts = types.clone()
        for kind, around in self.around_ids.items():
            for token_id in around:
                experts[ids == token_id] = kind
        return {name: {TYPES: types, EXPERTS: experts}[name] for name in self.spelling.types}

    def _template(self, video_count: int) -> str | dict[str, str] | None:
        return (video_count and self.spelling.template) or self.template

    def _pad_id(self) -> int:
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        return 0

    def _render(self, messages: Any, video_count: int) -> str | None:
        """Render the template with messages; None where it cannot take such a content."""
        from jinja2 import TemplateError

        template = self._template(video_count)
        template = template["default"] if isinstance(template, dict) else template
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            return str(rendered)
        except (TemplateError, TypeError):
            return None

    def _checked(self, text: str, questions: Sequence[str], video_count: int) -> str:
        found = text.count(self.video_token)
        if found != video_count or not _holds(text, questions):
            raise InputError(
                f"prompt: {video_count} videos were given, but {found} placeholders {self.video_token!r} "
                f"are in {text[:80]!r}; write one for each video, or none and let the chat template do it"
            )
        return text


def _holds(text: str, questions: Sequence[str]) -> bool:
    return all(question.strip() in text for question in questions)


def _token(tokenizer: PreTrainedTokenizerBase, token_id: Any, whose: str) -> str:
    """Find the token of an id in the model's configuration. Raises InputError if the tokenizer does not know it."""
    token = None
    if isinstance(token_id, int) and token_id < len(tokenizer):
        token = tokenizer.convert_ids_to_tokens(token_id)
    if not isinstance(token, str) or token == tokenizer.unk_token:
        raise InputError(
            f"tokenizer: the model's {whose} placeholder has id {token_id}, "
            f"which this tokenizer does not know; use the tokenizer that came with the model"
        )
    return token


def _special(tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, name: str, usual: str) -> str:
    """Find a special token by its name in the tokenizer, else by its id in the configuration, else as it usually is."""
    named = getattr(tokenizer, name, None)
    token_id = getattr(model_config, f"{name}_id", None)
    return named or (_token(tokenizer, token_id, name) if token_id is not None else usual)


TYPES, EXPERTS = "mm_token_type_ids", "moe_mm_token_type_ids"


def spelling_of(model_config: PretrainedConfig) -> Spelling:
    """Find the family's spelling; one run without text around it where the family is unknown."""
    return SPELLINGS.get(model_config.model_type, Spelling(write=_plain))


def _plain(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    return [("", "")] * runs


def _qwen3_vl(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    """Write the mean of a temporal patch's first and last second before it."""
    seconds = clip.counted_seconds
    seconds += [seconds[-1]] * (runs * size - len(seconds))
    times = [(seconds[i * size] + seconds[(i + 1) * size - 1]) / 2 for i in range(runs)]
    return [(f"<{time:.1f} seconds>{tokens['vision_start_token']}", tokens["vision_end_token"]) for time in times]


def _glm4v(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    """Write the whole second of every other frame behind its temporal patch."""
    seconds = clip.counted_seconds[::2][:runs]
    seconds += [seconds[-1]] * (runs - len(seconds))
    return [("<|begin_of_image|>", f"<|end_of_image|>{int(second)}") for second in seconds]


def _video_llama_3(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    return [(f"{',' if i else ''}Time {second:.1f}s:", "") for i, second in enumerate(clip.counted_seconds)]


def _gemma4(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    return [
        (f"{' ' if i else ''}{_minutes(second)} {tokens['boi_token']}", tokens["eoi_token"])
        for i, second in enumerate(clip.counted_seconds)
    ]


def _internvl(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    start, end = tokens["start_image_token"], tokens["end_image_token"]
    return [(f"Frame{i + 1}: {start}", end + ("\n" if i + 1 < runs else "")) for i in range(runs)]


def _smolvlm(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    fake, whole = tokens["fake_image_token"], tokens["global_image_token"]
    length = timedelta(seconds=int(clip.duration_s))
    intro = f"You are provided the following series of {in_words(runs)} frames from a {length} [H:MM:SS] video.\n"
    return [
        (
            f"{'' if i else intro}\nFrame from {_minutes(second)}:{fake}{whole}",
            fake + ("\n\n" if i + 1 == runs else ""),
        )
        for i, second in enumerate(clip.counted_seconds)
    ]


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)


TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """Write a number below a million in English words, as SmolVLM2's prompts have it: "one hundred and twenty-one"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{ONES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    many, rest = divmod(number, size)
    link = "" if not rest else " and " if rest < 100 else ", "
    return f"{in_words(many)} {name}" + (link + in_words(rest) if rest else "")


_M_ROPE = Spelling(write=_plain, types=(TYPES,))


_QWEN3 = Spelling(
    write=_qwen3_vl,
    tokens={"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"},
    types=(TYPES,),
)


_GLM = Spelling(write=_glm4v, visual="image", types=(TYPES,), around=("<|begin_of_video|>", "<|end_of_video|>"))


SPELLINGS: Mapping[str, Spelling] = {
    "qwen2_vl": _M_ROPE,
    "qwen2_5_vl": _M_ROPE,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "ernie4_5_vl_moe": Spelling(write=_plain, types=(TYPES, EXPERTS)),
    "video_llama_3": Spelling(write=_video_llama_3),
    "gemma4": Spelling(
        write=_gemma4,
        tokens={"boi_token": "", "eoi_token": ""},
        types=(TYPES,),
        adds_video="<|video|>",
    ),
    "internvl": Spelling(
        write=_internvl,
        visual="image",
        video="<video>",
        tokens={"start_image_token": "<img>", "end_image_token": "</img>"},
    ),
    "smolvlm": Spelling(
        write=_smolvlm,
        visual="image",
        video="<video>",
        tokens={"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"},
        template=SMOLVLM_TEMPLATE,
    ),
}
