"""Questions ready to be answered: as whole prompts, or behind what the prompts about one video share, run once."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vidsieve.adapters.prefix_sharing import branched, cache_bytes, continued, first_columns, shared_columns
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report
from vidsieve.framework.task import Example
from vidsieve.harness.runner import Runner
from vidsieve.media.clip import Clip
from vidsieve.tuner.protocol import Intervention


class QuestionBatch(ABC):
    """A batch of questions under a policy. `reports` are those of the pass in which the videos were run."""

    reports: Sequence[Report] = ()

    def __init__(self, runner: Runner, examples: Sequence[Example]) -> None:
        self.runner, self.examples = runner, examples

    @abstractmethod
    def generate(self, max_new_tokens: int, **options: Any) -> Any:
        """Run the prompts, each time from the beginning; as `Runner.generate`."""

    @abstractmethod
    def answers(self, max_new_tokens: int) -> list[str]:
        """Write greedy answers."""

    @property
    @abstractmethod
    def ratios(self) -> list[float | None]:
        """The attained retention ratio of each row, once it has been run."""

    def visual_tokens(self, runner: Runner) -> list[int]:
        """Count the visual tokens of each row's video as `runner` reads it."""
        return runner.visual_tokens(self.examples)


class WholePrompts(QuestionBatch):
    """Every prompt is run whole, with a video of its own."""

    def __init__(self, runner: Runner, policy: Intervention | None, examples: Sequence[Example]) -> None:
        super().__init__(runner, examples)
        self._policy = policy

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What `generate` takes, on the device."""
        return self.runner.inputs(self.examples)

    def generate(self, max_new_tokens: int, **options: Any) -> Any:
        with self.runner.under(self._policy) as self.reports:
            return self.runner.generate(self.inputs, max_new_tokens, **options)

    def answers(self, max_new_tokens: int) -> list[str]:
        return self.runner.answers(self.inputs, self.generate(max_new_tokens).sequences)

    @property
    def ratios(self) -> list[float | None]:
        return attained(self.reports, len(self.examples))


class WrittenPrompts(WholePrompts):
    """Finished prompts that belong to no example, each with the same number of videos, perhaps none."""

    def __init__(
        self, runner: Runner, policy: Intervention | None, texts: Sequence[str], clips: Sequence[Sequence[Clip]]
    ) -> None:
        super().__init__(runner, policy, ())
        self._texts, self._clips = texts, clips

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self.runner.on_device(self.runner.build_written(self._texts, self._clips))

    @property
    def ratios(self) -> list[float | None]:
        return attained(self.reports, len(self._texts)) if self._clips[0] else [None] * len(self._texts)


class VideoPrefix:
    """What the prompts about one video share, run once under a policy, when it is first needed."""

    def __init__(self, runner: Runner, policy: Policy, example: Example, inputs: dict[str, Any]) -> None:
        self.runner, self.policy, self.example = runner, policy, example
        self.reports: Sequence[Report] = ()
        self.ids: Int[Tensor, " shared"] = inputs["input_ids"][0].cpu()
        self._inputs: dict[str, Any] | None = inputs

    @classmethod
    def of(
        cls, runner: Runner, policy: Policy, first: Example, prompts: Sequence[Int[Tensor, " _"]]
    ) -> "VideoPrefix | None":
        """Find what `prompts` share, that of the `first` example among them. None where it is not the whole video."""
        inputs = runner.inputs([first])
        count = shared_columns(runner.loaded.adapter, runner.model, inputs, prompts)
        return cls(runner, policy, first, first_columns(inputs, count)) if count else None

    def is_of(self, runner: Runner, policy: Policy) -> bool:
        """Whether it is what `policy` leaves of a video that `runner` reads."""
        return self.runner is runner and self.policy.hash == policy.hash

    def begins(self, prompts: Sequence[Int[Tensor, " _"]]) -> bool:
        """Whether all `prompts` begin with it and go on."""
        width = len(self.ids)
        return all(len(one) > width and torch.equal(one[:width], self.ids) for one in prompts)

    @cached_property
    def cache(self) -> Any:
        """Keys and values of one row, with what the policy removed."""
        assert self._inputs is not None
        with self.runner.under(self.policy) as self.reports:
            output = self.runner.generate(self._inputs, 1)
        self._inputs = None  # pixels are not needed any more
        return output.past_key_values

    @property
    def bytes(self) -> int:
        """Memory that the cache takes, if it is there."""
        return cache_bytes(self.cache) if "cache" in vars(self) else 0


class OnePrefix(QuestionBatch):
    """Questions about one video, each run in a row behind a copy of the prefix's cache."""

    def __init__(self, prefix: VideoPrefix, examples: Sequence[Example], prompts: Sequence[Tensor]) -> None:
        super().__init__(prefix.runner, examples)
        self._prefix = prefix
        width = len(prefix.ids)
        ends = [one[width:] for one in prompts]
        rows = continued(prefix.ids, ends, self.runner.pad_id)
        self._inputs = {name: tensor.to(self.runner.device) for name, tensor in rows.items()}

    def generate(self, max_new_tokens: int, **options: Any) -> Any:
        prefix = self._prefix
        cache, self.reports = prefix.cache, prefix.reports
        inputs = self._inputs | {"past_key_values": branched(cache, len(self.examples))}
        with self.runner.under(prefix.policy):
            return self.runner.generate(inputs, max_new_tokens, **options)

    def answers(self, max_new_tokens: int) -> list[str]:
        return self.runner.answers(self._inputs, self.generate(max_new_tokens).sequences)

    @property
    def ratios(self) -> list[float | None]:
        return attained(self.reports, 1) * len(self.examples)

    def visual_tokens(self, runner: Runner) -> list[int]:
        return runner.visual_tokens([self._prefix.example]) * len(self.examples)


def attained(reports: Sequence[Report], rows: int) -> list[float | None]:
    """Return the attained retention ratio of each row; that of the call where rows have not one video each."""
    if not reports:
        return [1.0] * rows
    report = reports[-1]
    if report.layer_ratio is not None or not len(report.keeps) == len(report.baselines) == rows:
        return [report.attained_ratio] * rows
    return [int(keep.sum()) / whole for keep, whole in zip(report.keeps, report.baselines, strict=True)]
