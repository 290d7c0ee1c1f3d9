"""A task's `generation_kwargs` as arguments of `model.generate`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_NEW_TOKENS = 128
"""What lmms-eval's own models write at most where a task says nothing."""
PASSED = ("num_beams", "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "min_new_tokens")
SAMPLED = ("temperature", "top_p", "top_k")
READ = ("until", "max_new_tokens", "max_gen_toks", "do_sample", *PASSED, *SAMPLED)


@dataclass(frozen=True)
class GenerationSettings:
    """`options` go to `generate`; an answer ends before the first text of `until`; `ignored` are names not known."""

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    options: Mapping[str, Any] = field(default_factory=dict)
    until: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "GenerationSettings":
        """Read a task's settings. Sampled is where a temperature above zero is asked for, as in lmms-eval's models."""
        options = {name: given[name] for name in PASSED if given.get(name) is not None}
        if (given.get("temperature") or 0) > 0 and given.get("do_sample") is not False:
            options |= {name: given[name] for name in SAMPLED if given.get(name) is not None} | {"do_sample": True}
        until = given.get("until") or ()
        most = given.get("max_new_tokens") or given.get("max_gen_toks") or DEFAULT_NEW_TOKENS
        return cls(
            max_new_tokens=int(most),
            options=options,
            until=tuple(one for one in ((until,) if isinstance(until, str) else until) if one),
            ignored=tuple(name for name in given if name not in READ),
        )

    @property
    def key(self) -> str:
        """Equal for settings that may share a batch."""
        return repr((self.max_new_tokens, sorted(self.options.items()), self.until))

    def cut(self, answer: str) -> str:
        """Take off what begins with a text of `until`."""
        places = [place for stop in self.until if (place := answer.find(stop)) >= 0]
        return answer[: min(places)].strip() if places else answer
