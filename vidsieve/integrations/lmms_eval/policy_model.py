"""A model with or without a policy that answers prompts in batches, and notes what each one cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.framework.errors import InputError
from vidsieve.framework.policy.policy import Policy
from vidsieve.harness.answer_options import continuation_ids
from vidsieve.harness.data.clip_reader import ClipReader
from vidsieve.harness.example_scoring import forced
from vidsieve.harness.model_bench import facts
from vidsieve.harness.model_choice import choose
from vidsieve.harness.model_loading import Loaded, load, used_threads
from vidsieve.harness.question_batch import WrittenPrompts
from vidsieve.harness.request_timing import FirstToken, clock_ms
from vidsieve.harness.runner import Runner
from vidsieve.harness.session import choose_for, differences
from vidsieve.harness.setup import Setup, add_plugins
from vidsieve.integrations.lmms_eval.generation_settings import GenerationSettings
from vidsieve.integrations.lmms_eval.request_prompts import RequestPrompt

if TYPE_CHECKING:
    from vidsieve.integrations.lmms_eval.model_arguments import ModelArguments
    from vidsieve.media.clip import Clip


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer. `input_tokens` are those the language model read; `ttft_ms` is that of the batch it was in.

    `loss` is the mean negative log-likelihood of a token of a given continuation, `greedy` whether it would be written.
    `retention_ratio` is None for a prompt without video.
    """

    text: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    retention_ratio: float | None = None
    ttft_ms: float | None = None
    elapsed_ms: float = 0.0
    loss: float = 0.0
    greedy: bool = False


class PolicyModel:
    """Answers prompts greedily, or as their settings say, at most `batch_size` of the setup at once."""

    def __init__(self, loaded: Loaded, policy: Policy | None, setup: Setup) -> None:
        self.loaded, self.policy, self._setup = loaded, policy, setup
        self.rows = setup.batch_size or 1
        self.runner = Runner(loaded, ClipReader.of(setup, loaded.choice))

    @classmethod
    def open(cls, arguments: "ModelArguments", device: str | None, notice: Callable[[str], None]) -> "PolicyModel":
        """Load policy and model; what a tuned policy was measured with stands in for what is left out.

        `notice` is told which checkpoint a family stands for, and what differs from where the policy was tuned.
        Raises as `choose_for` and `load` do.
        """
        setup = arguments.setup(device)
        if arguments.policy is None:
            registry, policy = add_plugins(setup.plugin), None
            choice = choose(setup.model, setup.checkpoint, registry)
        else:
            chosen = choose_for(arguments.load_policy, setup)
            registry, policy, setup, choice = chosen.registry, chosen.policy, chosen.setup, chosen.choice
        if choice.note:
            notice(choice.note)
        model = cls(load(choice, setup, registry), policy, setup)
        if policy is not None:
            for difference in differences(policy, model.facts):
                notice(f"not as the policy was measured: {difference}")
        return model

    @property
    def facts(self) -> dict[str, str]:
        """Describe model, machine and workload."""
        reader = self.runner.reader
        sampled = {"frames": reader.frames, "fps": reader.fps, "max_pixels": self._setup.max_pixels}
        return facts(self.loaded, sampled | {"batch_size": self.rows})

    def answers(self, prompts: Sequence[RequestPrompt], settings: GenerationSettings) -> list[Answered]:
        """Write an answer to each prompt."""
        answered: dict[int, Answered] = {}
        for places, batch in self._batches(prompts):
            device = self.runner.device
            inputs, now = batch.inputs, partial(clock_ms, device)
            first = FirstToken(now)
            with used_threads(self.loaded.threads):
                start = now()
                options = {"stopping_criteria": [first], **settings.options}
                sequences = batch.generate(settings.max_new_tokens, **options).sequences
                end = now()
            new = sequences[:, inputs["input_ids"].shape[1] :]
            texts, written = self.runner.answers(inputs, sequences), self._written(new)
            for row, place in enumerate(places):
                answered[place] = Answered(
                    text=settings.cut(texts[row]),
                    input_tokens=_read_tokens(batch)[row],
                    output_tokens=written[row],
                    retention_ratio=batch.ratios[row],
                    ttft_ms=(first.at_ms or end) - start,
                    elapsed_ms=(end - start) / len(places),
                )
        return [answered[place] for place in range(len(prompts))]

    def losses(self, prompts: Sequence[RequestPrompt], continuations: Sequence[str]) -> list[Answered]:
        """Score the continuation of each prompt."""
        prompter = self.runner.processor.prompter
        pairs = zip(prompts, continuations, strict=True)
        ids = [continuation_ids(prompter, prompt.text, [text.lstrip()])[0] for prompt, text in pairs]
        if not all(ids):
            raise InputError("a continuation that is to be scored is empty.")
        answered: dict[int, Answered] = {}
        for places, batch in self._batches(prompts):
            wanted = [ids[place] for place in places]
            with used_threads(self.loaded.threads):
                start = clock_ms(self.runner.device)
                likelihoods, greedy = forced(batch, wanted)
                elapsed = clock_ms(self.runner.device) - start
            for row, place in enumerate(places):
                answered[place] = Answered(
                    input_tokens=_read_tokens(batch)[row],
                    output_tokens=len(wanted[row]),
                    retention_ratio=batch.ratios[row],
                    elapsed_ms=elapsed / len(places),
                    loss=-float(likelihoods[row]) / len(wanted[row]),
                    greedy=bool(greedy[row]),
                )
        return [answered[place] for place in range(len(prompts))]

    def _batches(self, prompts: Sequence[RequestPrompt]) -> Iterator[tuple[list[int], WrittenPrompts]]:
        """Yield batches of prompts with clips of equal shapes, and the places of these prompts."""
        for begin in range(0, len(prompts), self.rows):
            alike: dict[Any, list[tuple[int, list[Clip]]]] = {}
            for place, prompt in enumerate(prompts[begin : begin + self.rows], start=begin):
                clips = [self.runner.reader.clip(video) for video in prompt.videos]
                alike.setdefault(tuple(clip.frames.shape for clip in clips), []).append((place, clips))
            for rows in alike.values():
                places = [place for place, _ in rows]
                texts = [prompts[place].text for place in places]
                yield places, WrittenPrompts(self.runner, self.policy, texts, [clips for _, clips in rows])

    def _written(self, new: Int[Tensor, "rows new"]) -> list[int]:
        """Count the tokens that each row wrote, the one that ends an answer included."""
        ends = self.runner.model.generation_config.eos_token_id
        stops = torch.tensor(ends if isinstance(ends, list) else [] if ends is None else [ends], device=new.device)
        ended = torch.isin(new, stops).long().cumsum(dim=1)
        before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
        return [int(count) for count in (before == 0).sum(dim=1)]


def _read_tokens(batch: WrittenPrompts) -> list[int]:
    """Count the tokens of each prompt as the language model read it."""
    whole = [int(count) for count in batch.inputs["attention_mask"].sum(dim=1)]
    if not batch.reports:
        return whole
    report = batch.reports[-1]
    each = zip(report.baselines, report.keeps, strict=True)
    removed = [baseline - int(keep.sum()) for baseline, keep in each]
    videos = len(removed) // len(whole)  # every row has as many
    return [count - sum(removed[row * videos : (row + 1) * videos]) for row, count in enumerate(whole)]
