"""Score examples: multiple choice by probability, open answers by what is generated, both in batches."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vidsieve.framework.errors import DataError
from vidsieve.framework.task import Example, Outcome
from vidsieve.harness.answer_options import choice_ids, normalised
from vidsieve.harness.example_batches import ExampleBatches, Way
from vidsieve.harness.question_batch import QuestionBatch
from vidsieve.harness.runner import Force, Runners
from vidsieve.tuner.protocol import Intervention, SmallerInput


class Scorer:
    """Scores policies on examples.

    With options: p(gold) is the softmax over the options' first tokens at the first new position, or over the
    likelihoods of the whole options where first tokens collide; correct is its argmax. Without: the greedy answer,
    compared with the label after normalisation. Without labels (`metric` "agreement"): the greedy answer, compared
    with the uncompressed model's on the full input.

    Outcomes are those of one example at a time, whatever the batches; `share_prefix` as in `ExampleBatches`.
    """

    def __init__(
        self, runners: Runners, metric: str, batch_size: int, max_new_tokens: int, *, share_prefix: bool = True
    ) -> None:
        self._runners, self._metric, self._max_new_tokens = runners, metric, max_new_tokens
        self._batches = ExampleBatches(runners, batch_size, self._way, share_prefix=share_prefix)
        self._uncompressed: dict[str, str] = {}
        self._choice_ids: dict[str, list[list[int]]] = {}

    def score(self, policy: Intervention | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Yield outcomes in the order of the examples, as batches finish."""
        batches, outcomes = self._batches.of(policy, examples), dict[str, Outcome]()
        for example in examples:
            while example.id not in outcomes:
                outcomes |= self._outcomes(policy, next(batches))
            yield outcomes[example.id]

    def _way(self, example: Example) -> Way:
        if not example.options or self._metric != "accuracy":
            return "written"
        first = {option[0] for option in self._ids(example) if option}
        return "first token" if len(first) == len(example.options) else "whole options"

    def _ids(self, example: Example) -> list[list[int]]:
        """Return the token ids of each option, worked out once."""
        if example.id not in self._choice_ids:
            full = self._runners.full
            self._choice_ids[example.id] = choice_ids(full.processor.prompter, full.prompt(example))
        return self._choice_ids[example.id]

    def _outcomes(self, policy: Intervention | None, batch: QuestionBatch) -> dict[str, Outcome]:
        """Score one batch."""
        way = self._way(batch.examples[0])
        if way == "written":
            return self._written(policy, batch)
        scores = self._by_first_token(batch) if way == "first token" else self._by_likelihood(batch)
        rows = zip(batch.examples, scores, self._ratios(policy, batch), strict=True)
        return {example.id: _chosen(example, found, ratio) for example, found, ratio in rows}

    def _by_first_token(self, batch: QuestionBatch) -> list[Float[Tensor, " options"]]:
        """Compute the logits of each option's first token."""
        logits = batch.generate(1, output_logits=True).logits[0].float().cpu()
        ids = map(self._ids, batch.examples)
        return [row[[option[0] for option in options]] for row, options in zip(logits, ids, strict=True)]

    def _by_likelihood(self, batch: QuestionBatch) -> list[Float[Tensor, " options"]]:
        """Compute the log-likelihood of each option to its end; the end counts, so none is the beginning of another."""
        end_id = batch.runner.end_id
        end = [] if end_id is None else [end_id]
        whole = [[[*option, *end] for option in self._ids(example)] for example in batch.examples]
        columns = [
            forced(batch, [options[number % len(options)] for options in whole])[0]
            for number in range(max(len(options) for options in whole))
        ]
        table = torch.stack(columns, dim=1)
        return [row[: len(options)] for row, options in zip(table, whole, strict=True)]

    def _written(self, policy: Intervention | None, batch: QuestionBatch) -> dict[str, Outcome]:
        """Compare greedy answers with the labels, or with the uncompressed model's answers."""
        examples, labelled = batch.examples, self._metric == "accuracy"
        wanted = {e.id: _label(e) for e in examples} if labelled else self._references(examples)
        answers = (
            [wanted[e.id] for e in examples] if policy is None and not labelled else batch.answers(self._max_new_tokens)
        )
        return {
            e.id: Outcome(
                example_id=e.id,
                group=e.group,
                correct=float(normalised(answer) == normalised(wanted[e.id])),
                prediction=answer,
                retention_ratio=ratio,
                kind=e.kind,
            )
            for e, answer, ratio in zip(examples, answers, self._ratios(policy, batch), strict=True)
        }

    def _references(self, examples: Sequence[Example]) -> dict[str, str]:
        """Return the uncompressed model's answers, each generated once."""
        missing = [example for example in examples if example.id not in self._uncompressed]
        for batch in self._batches.of(None, missing):
            answers = batch.answers(self._max_new_tokens)
            self._uncompressed |= {e.id: answer for e, answer in zip(batch.examples, answers, strict=True)}
        return {example.id: self._uncompressed[example.id] for example in examples}

    def _ratios(self, policy: Intervention | None, batch: QuestionBatch) -> list[float | None]:
        """Compute visual tokens of each row ÷ those of the uncompressed model."""
        if not isinstance(policy, SmallerInput):
            return batch.ratios
        counts = [batch.visual_tokens(runner) for runner in (batch.runner, self._runners.full)]
        return [smaller / full for smaller, full in zip(*counts, strict=True)]


def forced(batch: QuestionBatch, wanted: Sequence[list[int]]) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Compute the log-likelihood of a given answer for each row, and whether it is the one that is written greedily."""
    steps = max(len(answer) for answer in wanted)
    tokens = torch.tensor([[*answer, *[answer[-1]] * (steps - len(answer))] for answer in wanted])
    real = torch.tensor([[step < len(answer) for step in range(steps)] for answer in wanted])
    force = Force(tokens.to(batch.runner.device))
    out = batch.generate(steps, output_logits=True, logits_processor=[force])
    # rows that all ended early leave fewer steps, and those are padding
    logits = torch.stack(list(out.logits), dim=1).float().cpu()
    tokens, real = tokens[:, : logits.shape[1]], real[:, : logits.shape[1]]
    taken = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    greedy = (logits.argmax(dim=-1) == tokens) | ~real
    return torch.where(real, taken, 0.0).sum(dim=1), greedy.all(dim=1)


def _label(example: Example) -> str:
    if example.answer is None:
        raise DataError(f"example {example.id!r}: has no answer; label it, or use `videos` to score agreement.")
    return example.answer


def _chosen(example: Example, scores: Float[Tensor, " options"], ratio: float | None) -> Outcome:
    """Make the outcome of one multiple-choice question; equal scores go to the earlier option."""
    options = example.options or ()
    gold = options.index(_label(example))
    probabilities = scores.softmax(dim=0)
    best = int(scores.argmax())
    return Outcome(
        example_id=example.id,
        group=example.group,
        correct=float(best == gold),
        prediction=options[best],
        p_gold=float(probabilities[gold]),
        retention_ratio=ratio,
        kind=example.kind,
    )
