"""What a call's rules and streamer see: the prompt as the caller gave it, followed by the new tokens.

`generate` runs a shorter prompt. Stopping criteria, logits processors and `prefix_allowed_tokens_fn` know the length of
the caller's, and so do the rules that transformers makes from settings (`max_length`, `no_repeat_ngram_size`, …).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList, generation

from vidsieve.adapters.adapter import VideoModel


class CallerView:
    """Puts the caller's prompt in place of the shorter one of `width` columns.

    `max_length` is the caller's own, where it decides. `mask` belongs to `ids`.
    """

    def __init__(
        self,
        ids: Int[Tensor, "rows columns"],
        mask: Shaped[Tensor, "rows columns"],
        width: int,
        max_length: int | None = None,
    ) -> None:
        self._ids, self._mask, self._width, self._max_length = ids, mask, width, max_length
        self._prompts: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def removed(self) -> int:
        """Columns that the caller's prompt has more."""
        return self._ids.shape[1] - self._width

    def __call__(self, ids: Any) -> Any:
        """Ids of `generate` with the caller's prompt in front. Beams and answers are consecutive rows of one prompt."""
        key = ids.shape[0], ids.device
        if key not in self._prompts:
            self._prompts[key] = self._rows(self._ids, ids.shape[0]).to(ids.device)
        return torch.cat([self._prompts[key], ids[:, self._width :]], dim=1)

    def streamer(self, streamer: Any) -> "_Streamer":
        """A streamer that passes on the caller's prompt once, then every new token."""
        return _Streamer(streamer, self)

    @contextmanager
    def shown(self, model: VideoModel) -> Iterator[None]:
        """While open, `generate` makes its rules, and checks its lengths, for the caller's prompt."""
        check, processors, criteria = (getattr(model, name) for name in _MAKERS)

        def check_lengths(generation_config: Any, input_ids_length: int, *rest: Any) -> None:
            check(self._lengthened(generation_config), input_ids_length + self.removed, *rest)

        def make_processors(generation_config: Any, **given: Any) -> LogitsProcessorList:
            repeats = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            mask = self._rows(self._mask, self._mask.shape[0] * repeats)
            given |= {
                "input_ids_seq_length": given["input_ids_seq_length"] + self.removed,
                "encoder_input_ids": self._ids,
                "model_kwargs": {**given["model_kwargs"], "attention_mask": mask},
            }
            rules = processors(generation_config=self._lengthened(generation_config), **given)
            lowered = self._lowered(rules)
            return _Processors(rules, self) if lowered is None else lowered

        def make_criteria(generation_config: Any, *rest: Any, **given: Any) -> StoppingCriteriaList:
            rules = criteria(self._lengthened(generation_config), *rest, **given)
            lowered = self._lowered(rules)
            return _Criteria(rules, self) if lowered is None else lowered

        with _replaced(model, dict(zip(_MAKERS, (check_lengths, make_processors, make_criteria), strict=True))):
            yield

    def _lowered(self, rules: Any) -> Any:
        """The rules for the shorter prompt, where none of them reads more than lengths; else None.

        They then run on the ids as `generate` has them, without a copy of the caller's prompt at every step.
        """
        if not all(type(rule) in _LENGTHS for rule in rules):
            return None
        lowered = [copy.copy(rule) for rule in rules]
        for rule in lowered:
            for name in _LENGTHS[type(rule)]:
                if getattr(rule, name) is not None:
                    setattr(rule, name, getattr(rule, name) - self.removed)
        return type(rules)(lowered)

    def _lengthened(self, config: Any) -> Any:
        """A generation config with the lengths that hold for the caller's prompt."""
        config = copy.copy(config)
        config.max_length = self._max_length or config.max_length + self.removed
        if config.min_length:
            config.min_length += self.removed
        return config

    def _rows(self, values: Tensor, rows: int) -> Tensor:
        return values.repeat_interleave(rows // values.shape[0], dim=0)


_LENGTHS: dict[type, tuple[str, ...]] = {
    generation.MinLengthLogitsProcessor: ("min_length",),
    generation.MinNewTokensLengthLogitsProcessor: ("prompt_length_to_skip",),
    generation.TemperatureLogitsWarper: (),
    generation.TopKLogitsWarper: (),
    generation.TopPLogitsWarper: (),
    generation.MinPLogitsWarper: (),
    generation.MaxLengthCriteria: ("max_length", "max_position_embeddings"),
    generation.MaxTimeCriteria: (),
    generation.EosTokenCriteria: (),
}
"""Rules of transformers that read no ids before the last, and their attributes that count the prompt."""
_MAKERS = ("_validate_generated_length", "_get_logits_processor", "_get_stopping_criteria")
"""Where `generate` checks lengths and makes its rules, the caller's among them."""


class _Processors(LogitsProcessorList):
    """Logits processors that see the caller's ids, together or (as an assistant model takes them) one by one."""

    def __init__(self, rules: LogitsProcessorList, view: CallerView) -> None:
        super().__init__(_Processor(rule, view) for rule in rules)
        self._rules, self._view = rules, view

    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        return self._rules(self._view(input_ids), scores, **given)


class _Processor:
    def __init__(self, rule: Callable[..., Any], view: CallerView) -> None:
        self._rule, self._view = rule, view

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self._rule(self._view(input_ids), scores)


class _Criteria(StoppingCriteriaList):
    """Stopping criteria that see the caller's ids; `generate` itself compares `max_length` with the shorter prompt."""

    def __init__(self, rules: StoppingCriteriaList, view: CallerView) -> None:
        super().__init__(rules)
        self._view = view

    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        return super().__call__(self._view(input_ids), scores, **given)

    @property
    def max_length(self) -> int | None:
        longest = super().max_length
        return None if longest is None else longest - self._view.removed


class _Streamer:
    def __init__(self, streamer: Any, view: CallerView) -> None:
        self._streamer, self._view, self._started = streamer, view, False

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt once, then with every new token."""
        self._streamer.put(value if self._started else self._view(value).cpu())
        self._started = True

    def end(self) -> None:
        """Called when nothing more comes."""
        self._streamer.end()


@contextmanager
def _replaced(owner: Any, methods: dict[str, Any]) -> Iterator[None]:
    """While open, `owner` has these methods of its own."""
    before = {name: vars(owner)[name] for name in methods if name in vars(owner)}
    try:
        for name, method in methods.items():
            setattr(owner, name, method)
        yield
    finally:
        for name in methods:
            if name in before:
                setattr(owner, name, before[name])
            else:
                vars(owner).pop(name, None)
