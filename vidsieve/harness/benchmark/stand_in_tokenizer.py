"""A tokenizer with the special tokens of a configuration in their places, and little else: enough to write a prompt."""

import string
from typing import Any

QUESTION = "What happens in this video, and in which order? Answer in one sentence."
UNKNOWN, END = "[unknown]", "<|endoftext|>"


def stand_in_tokenizer(config: Any) -> Any:
    """Make a tokenizer of the vocabulary's size: words and signs of our prompts, and the special tokens at their ids.

    It reads no language; a prompt of ours has about as many tokens as with the model's own.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = config.get_text_config()
    special = _special(config, text)
    words = dict.fromkeys([UNKNOWN, *string.ascii_letters, *string.digits, *string.punctuation, *_words()])
    names = [f"[{number}]" for number in range(text.vocab_size)]
    names[: len(words)] = words
    for token, number in special.items():
        names[number] = token
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=END,
        eos_token="<|im_end|>",
        additional_special_tokens=[token for token in special if token != END],
        padding_side="left",
    )


def chat_template(config: Any) -> str:
    """Write a chat template in the manner of Qwen's, with the video between its start and end where there are such."""
    video = "<|video_pad|>"
    if getattr(config, "vision_start_token_id", None) is not None:
        video = f"<|vision_start|>{video}<|vision_end|>"
    return (
        "<|im_start|>system You are a helpful assistant.<|im_end|>{% for message in messages %}<|im_start|>user "
        f"{{% for part in message['content'] %}}{{{{ '{video}' if part['type'] == 'video' else part['text'] }}}}"
        "{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant "
    )


def _special(config: Any, text: Any) -> dict[str, int]:
    """List the special tokens with their ids: of the configuration, and of Qwen's vocabulary, which all have."""
    start = text.bos_token_id
    found = {END: start, "<|im_start|>": start + 1, "<|im_end|>": start + 2}
    for name in ("vision_start", "vision_end"):
        if (number := getattr(config, f"{name}_token_id", None)) is not None:
            found[f"<|{name}|>"] = number
    found |= {"<|image_pad|>": config.image_token_id, "<|video_pad|>": config.video_token_id}
    return found


def _words() -> list[str]:
    """List the words that prompts hold."""
    written = f"{QUESTION} You are a helpful assistant. system user assistant seconds"
    return sorted({word.strip(string.punctuation) for word in written.split()})
