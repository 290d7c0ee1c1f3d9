"""Score examples: multiple choice by probability, open answers by what is generated, both in batches."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vidsieve.framework.errors import DataError
from vidsieve.framework.report import Report
from vidsieve.framework.task import Example, Outcome
from vidsieve.harness.answer_options import choice_ids, normalised
from vidsieve.harness.runner import Force, Runner, Runners
from vidsieve.tuner.protocol import Intervention, SmallerInput


class Scorer:
    """Scores policies on examples.

    With options: p(gold) is the softmax over the options' first tokens at the first new position, or over the
    likelihoods of the whole options where first tokens collide; correct is its argmax. Without: the greedy answer,
    compared with the label after normalisation. Without labels (`metric` "agreement"): the greedy answer, compared
    with the uncompressed model's on the full input.
    """

    def __init__(self, runners: Runners, metric: str, batch_size: int, max_new_tokens: int) -> None:
        self._runners, self._metric = runners, metric
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self._uncompressed: dict[str, str] = {}

    def score(self, policy: Intervention | None, examples: Sequence[Example]) -> Iterator[Outcome]:
        """Yield outcomes in the order of the examples, as batches finish."""
        for start in range(0, len(examples), self._batch_size):
            yield from self._batch(policy, examples[start : start + self._batch_size])

    def _batch(self, policy: Intervention | None, examples: Sequence[Example]) -> list[Outcome]:
        """Score one batch: those with options, then the rest."""
        outcomes: dict[str, Outcome] = {}
        with_options = [e for e in examples if e.options and self._metric == "accuracy"]
        others = [e for e in examples if not e.options or self._metric != "accuracy"]
        if with_options:
            outcomes |= self._choices(policy, with_options)
        if others:
            outcomes |= self._written(policy, others)
        return [outcomes[example.id] for example in examples]

    def _choices(self, policy: Intervention | None, examples: Sequence[Example]) -> dict[str, Outcome]:
        """Score multiple choice: one new token, or one pass for each option where first tokens collide."""
        full = self._runners.full
        ids = [choice_ids(full.processor.prompter, full.prompt(e)) for e in examples]
        apart = [len({option[0] for option in each if option}) == len(each) for each in ids]
        scores: dict[str, Float[Tensor, " options"]] = {}
        ratios: dict[str, float | None] = {}
        for first_only in (True, False):
            rows = [row for row, distinct in enumerate(apart) if distinct is first_only]
            if not rows:
                continue
            chosen, their_ids = [examples[row] for row in rows], [ids[row] for row in rows]
            method = self._by_first_token if first_only else self._by_likelihood
            found, shares = method(policy, chosen, their_ids)
            scores |= {example.id: score for example, score in zip(chosen, found, strict=True)}
            ratios |= {example.id: share for example, share in zip(chosen, shares, strict=True)}
        return {e.id: _chosen(e, scores[e.id], ratios[e.id]) for e in examples}

    def _by_first_token(
        self, policy: Intervention | None, examples: Sequence[Example], ids: Sequence[list[list[int]]]
    ) -> tuple[list[Tensor], list[float | None]]:
        """Compute the logits of each option's first token."""
        runner = self._runners.of(policy)
        inputs = runner.inputs(examples)
        with runner.under(policy) as reports:
            logits = runner.generate(inputs, 1, output_logits=True).logits[0].float().cpu()
        found = [row[[option[0] for option in options]] for row, options in zip(logits, ids, strict=True)]
        return found, self._ratios(policy, reports, examples)

    def _by_likelihood(
        self, policy: Intervention | None, examples: Sequence[Example], ids: Sequence[list[list[int]]]
    ) -> tuple[list[Tensor], list[float | None]]:
        """Compute the log-likelihood of each option to its end; the end counts, so none is the beginning of another."""
        runner = self._runners.of(policy)
        inputs = runner.inputs(examples)
        end = [] if runner.end_id is None else [runner.end_id]
        whole = [[[*option, *end] for option in options] for options in ids]
        columns = []
        with runner.under(policy) as reports:
            for number in range(max(len(options) for options in whole)):
                columns.append(_forced(runner, inputs, [options[number % len(options)] for options in whole]))
        table = torch.stack(columns, dim=1)
        found = [row[: len(options)] for row, options in zip(table, whole, strict=True)]
        return found, self._ratios(policy, reports, examples)

    def _written(self, policy: Intervention | None, examples: Sequence[Example]) -> dict[str, Outcome]:
        """Compare greedy answers with the labels, or with the uncompressed model's answers."""
        labelled = self._metric == "accuracy"
        wanted = {e.id: _label(e) for e in examples} if labelled else self._references(examples)
        if policy is None and not labelled:
            answers, ratios = list(wanted.values()), self._ratios(None, (), examples)
        else:
            answers, ratios = self._answers(policy, examples)
        return {
            e.id: Outcome(
                example_id=e.id,
                group=e.group,
                correct=float(normalised(answer) == normalised(wanted[e.id])),
                prediction=answer,
                retention_ratio=ratio,
                kind=e.kind,
            )
            for e, answer, ratio in zip(examples, answers, ratios, strict=True)
        }

    def _answers(
        self, policy: Intervention | None, examples: Sequence[Example]
    ) -> tuple[list[str], list[float | None]]:
        runner = self._runners.of(policy)
        inputs = runner.inputs(examples)
        with runner.under(policy) as reports:
            sequences = runner.generate(inputs, self._max_new_tokens).sequences
        return runner.answers(inputs, sequences), self._ratios(policy, reports, examples)

    def _references(self, examples: Sequence[Example]) -> dict[str, str]:
        """Return the uncompressed model's answers, each generated once."""
        missing = [example for example in examples if example.id not in self._uncompressed]
        if missing:
            answers, _ = self._answers(None, missing)
            self._uncompressed |= {e.id: answer for e, answer in zip(missing, answers, strict=True)}
        return {example.id: self._uncompressed[example.id] for example in examples}

    def _ratios(
        self, policy: Intervention | None, reports: Sequence[Report], examples: Sequence[Example]
    ) -> list[float | None]:
        """Compute visual tokens of each row ÷ those of the uncompressed model."""
        if not isinstance(policy, SmallerInput):
            return _attained(reports, len(examples))
        counts = self._runners.of(policy).visual_tokens(examples), self._runners.full.visual_tokens(examples)
        return [smaller / full for smaller, full in zip(*counts, strict=True)]


def _forced(runner: Runner, inputs: dict[str, Tensor], wanted: Sequence[list[int]]) -> Float[Tensor, " rows"]:
    """Compute the log-likelihood of a given answer for each row."""
    steps = max(len(answer) for answer in wanted)
    tokens = torch.tensor([[*answer, *[answer[-1]] * (steps - len(answer))] for answer in wanted])
    real = torch.tensor([[step < len(answer) for step in range(steps)] for answer in wanted])
    force = Force(tokens.to(runner.device))
    out = runner.generate(inputs, steps, output_logits=True, logits_processor=[force])
    # rows that all ended early leave fewer steps, and those are padding
    logits = torch.stack(list(out.logits), dim=1).float().cpu()
    taken = logits.log_softmax(-1).gather(-1, tokens[:, : logits.shape[1], None])[..., 0]
    return torch.where(real[:, : logits.shape[1]], taken, 0.0).sum(dim=1)


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


def _attained(reports: Sequence[Report], rows: int) -> list[float | None]:
    """Return the attained retention ratio of each row; every row has one video."""
    if not reports:
        return [1.0] * rows
    report = reports[-1]
    if report.layer_ratio is not None or not len(report.keeps) == len(report.baselines) == rows:
        return [report.attained_ratio] * rows
    return [int(keep.sum()) / whole for keep, whole in zip(report.keeps, report.baselines, strict=True)]
