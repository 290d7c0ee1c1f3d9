"""How each family writes a video into its prompt: which text stands around its runs of placeholders.

The texts are those of transformers' processors of the same families (transformers 5.23, Apache-2.0); times are counted
as they count them, by frame number and mean rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias

from transformers import PretrainedConfig

from vidsieve.media.clip import Clip

Around: TypeAlias = tuple[str, str]
"""The text before a run of placeholders and the text after it."""
Write: TypeAlias = Callable[[Mapping[str, str], Clip, int, int], Sequence[Around]]
"""(special tokens by name, clip, number of runs, frames in a run) -> the text around each run."""

TYPES, EXPERTS = "mm_token_type_ids", "moe_mm_token_type_ids"
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


def spelling_of(model_config: PretrainedConfig) -> Spelling:
    """The family's; one run without text around it where the family is unknown."""
    return SPELLINGS.get(model_config.model_type, Spelling(write=_plain))


def _plain(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    return [("", "")] * runs


def _qwen3_vl(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    """The mean of a temporal patch's first and last second before it."""
    seconds = clip.counted_seconds
    seconds += [seconds[-1]] * (runs * size - len(seconds))
    times = [(seconds[i * size] + seconds[(i + 1) * size - 1]) / 2 for i in range(runs)]
    return [(f"<{time:.1f} seconds>{tokens['vision_start_token']}", tokens["vision_end_token"]) for time in times]


def _glm4v(tokens: Mapping[str, str], clip: Clip, runs: int, size: int) -> list[Around]:
    """The whole second of every other frame behind its temporal patch."""
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
    """A number below a million in English words, as SmolVLM2's prompts have it: "one hundred and twenty-one"."""
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
