"""Which examples are run together: the questions about one video behind its cached prefix, the rest by equal shape."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.adapters.apply import check_policy
from vidsieve.adapters.prefix_sharing import shares_prefixes
from vidsieve.framework.hookspecs import KV_HOOKS
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example
from vidsieve.harness.question_batch import OnePrefix, QuestionBatch, VideoPrefix, WholePrompts
from vidsieve.harness.runner import Runner, Runners
from vidsieve.tuner.protocol import Intervention

Way = Literal["first token", "whole options", "written"]
"""How an example is scored: by each option's first token, by each option to its end, or by the answer written."""
KEPT_BYTES = 256 << 20
UNCOMPRESSED = Policy(name="none")


@dataclass(eq=False)
class _Turn:
    """One call: `groups` are the examples about one video by the id of each, `held` those that came in a batch."""

    runner: Runner
    intervention: Intervention | None
    under: Policy
    groups: dict[str, list[Example]]
    held: set[str] = field(default_factory=set)


class ExampleBatches:
    """Puts examples into batches of at most `rows`, each of one way of scoring.

    Where a policy does not look at the question, what the prompts about one video share is run once, and a batch is
    rows behind it; never with `share_prefix` off. Other batches hold clips of one shape.
    """

    def __init__(
        self, runners: Runners, rows: int, way: Callable[[Example], Way], *, share_prefix: bool = True
    ) -> None:
        self._runners, self._rows, self._way = runners, rows, way
        self._share = share_prefix and shares_prefixes(runners.full.model)
        self._last: VideoPrefix | None = None

    def of(self, intervention: Intervention | None, examples: Sequence[Example]) -> Iterator[QuestionBatch]:
        """Yield batches that hold each example once; the next one has the first example that none has held yet."""
        runner = self._runners.of(intervention)
        under, ways = self._shared_under(intervention)
        turn = _Turn(runner, intervention, under, self._groups(examples, ways))
        if self._last is not None and not self._last.is_of(runner, under):
            self._last = None
        for place, example in enumerate(examples):
            if example.id in turn.held:
                continue
            for batch in self._next(turn, examples[place:]):
                turn.held.update(one.id for one in batch.examples)
                yield batch

    def _shared_under(self, intervention: Intervention | None) -> tuple[Policy, tuple[Way, ...]]:
        """What a prefix is run under, and the ways of scoring behind it: none where the question decides what stays."""
        if not isinstance(intervention, Policy):
            return UNCOMPRESSED, get_args(Way) if self._share else ()
        policy, kv = intervention, intervention.kv_stages
        if not self._share or policy.layer_stages or "question" in policy.needs() | policy.wants():
            return policy, ()
        if not kv:
            return policy, get_args(Way)
        if policy.stages[-len(kv) :] != kv or any(not set(bound.hooks) <= {*KV_HOOKS} for bound in kv):
            return policy, ()
        # they act in decode alone, so first tokens are the same without them; the stages before keep their seeds
        check_policy(self._runners.full.loaded.adapter, policy)
        return replace(policy, stages=policy.stages[: -len(kv)]), ("first token",)

    def _groups(self, examples: Sequence[Example], ways: Sequence[Way]) -> dict[str, list[Example]]:
        """The examples about one video whose prompts are run more than once together, by the id of each."""
        unique = {one.id: one for one in examples if self._way(one) in ways}
        groups = [group for group in _by_video(unique.values()) if sum(map(self._runs, group)) > 1]
        return {example.id: group for group in groups for example in group}

    def _runs(self, example: Example) -> int:
        """How many times its prompt is run to score it."""
        return len(example.options or ()) if self._way(example) == "whole options" else 1

    def _next(self, turn: _Turn, left: Sequence[Example]) -> Iterator[QuestionBatch]:
        """Yield the batches about the video of the first example left, or one of examples like it."""
        group = turn.groups.get(left[0].id)
        if group is not None:
            prompts = self._prompts(turn, group)
            if self._last is not None:
                yield from self._behind(self._last, group, prompts)
                return
            for example in group:
                del turn.groups[example.id]
        others = (one for one in left if one.id not in turn.held and one.id not in turn.groups)
        yield WholePrompts(turn.runner, turn.intervention, self._alike(turn.runner, others))

    def _prompts(self, turn: _Turn, group: Sequence[Example]) -> list[Int[Tensor, " _"]]:
        """The ids of each prompt about one video; `_last` is then what they share, or None."""
        prompts = turn.runner.prompt_ids(group)
        last, self._last = self._last, None  # freed before another one is filled
        if last is not None and len(_by_video([last.example, group[0]])) == 1 and last.begins(prompts):
            self._last = last
        else:
            self._last = VideoPrefix.of(turn.runner, turn.under, group[0], prompts)
        return prompts

    def _behind(
        self, prefix: VideoPrefix, group: Sequence[Example], prompts: Sequence[Int[Tensor, " _"]]
    ) -> Iterator[QuestionBatch]:
        """Yield the rows behind a prefix. It is kept for who scores in portions and cuts between two of them."""
        try:
            for way in dict.fromkeys(map(self._way, group)):
                rows = iter([row for row in zip(group, prompts, strict=True) if self._way(row[0]) == way])
                while batch := list(islice(rows, self._rows)):
                    yield OnePrefix(prefix, *zip(*batch, strict=True))
        finally:
            # a smaller input's runner would be kept with it
            if prefix.bytes > KEPT_BYTES or prefix.runner is not self._runners.full:
                self._last = None

    def _alike(self, runner: Runner, left: Iterator[Example]) -> list[Example]:
        """The next batch: as the first one left, of those close behind it the ones of its way and its clip's shape."""
        first = next(left)
        same_way = (one for one in left if self._way(one) == self._way(first))
        near = list(islice(same_way, self._rows - 1))
        return [first, *(one for one in near if runner.clip_shape(one) == runner.clip_shape(first))]


def _by_video(examples: Iterable[Example]) -> list[list[Example]]:
    """The examples of each video: of one file, or of one group with equal frames."""
    named: dict[Hashable, list[list[Example]]] = {}
    for example in examples:
        groups = named.setdefault(example.video or example.group, [])
        group = next((one for one in groups if _same_frames(one[0], example)), None)
        if group is None:
            groups.append([example])
        else:
            group.append(example)
    return [group for groups in named.values() for group in groups]


def _same_frames(one: Example, other: Example) -> bool:
    if one.frames is None or other.frames is None or one.fps != other.fps:
        return one.frames is other.frames is None
    return one.frames is other.frames or torch.equal(one.frames, other.frames)
