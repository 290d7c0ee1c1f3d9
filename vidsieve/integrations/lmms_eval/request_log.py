"""What requests attained, told beside the scores: retention, time to the first token, tokens read, by task."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vidsieve.framework.policy.policy import Policy
from vidsieve.integrations.lmms_eval.policy_model import Answered


@dataclass(eq=False)
class RequestLog:
    """Answers by task and document, under one policy; `described` says on what they were made."""

    policy: Policy | None
    described: Mapping[str, str]
    answers: defaultdict[str, list[tuple[Any, Answered]]] = field(default_factory=lambda: defaultdict(list))
    _fresh: list[Answered] = field(default_factory=list)

    def add(self, task: str, doc_id: Any, answered: Answered) -> None:
        """Note an answer."""
        self.answers[task].append((doc_id, answered))
        self._fresh.append(answered)

    def fresh(self) -> list[Answered]:
        """Return the answers that were noted since the last call."""
        found, self._fresh = self._fresh, []
        return found

    @property
    def named(self) -> str:
        """The policy, with its hash."""
        return "no policy" if self.policy is None else f"policy {self.policy.name} ({self.policy.hash})"

    def sentences(self) -> list[str]:
        """One sentence a task."""
        told = []
        for task, answers in self.answers.items():
            numbers = summary([answer for _, answer in answers])
            sentence = f"vidsieve: {task}: {len(answers)} requests under {self.named}"
            if "attained_retention" in numbers:
                asked = self.policy.retention_ratio if self.policy is not None else None
                wish = "" if asked is None else f" of {asked:g} asked"
                sentence += f"; retention {numbers['attained_retention']:.4f}{wish}"
            if "ttft_ms" in numbers:
                sentence += f"; time to first token {numbers['ttft_ms']:.1f} ms (median)"
            told.append(f"{sentence}.")
        return told

    def numbers(self, answers: Sequence[Answered]) -> dict[str, float]:
        """What `answers` attained, and the policy's hash as a name, since only numbers are kept beside the scores."""
        found = summary(answers)
        return found if self.policy is None else found | {f"policy_{self.policy.hash}": 1.0}

    def to_dict(self) -> dict[str, Any]:
        """As one JSON document."""
        return {
            "policy": None if self.policy is None else self.policy.name,
            "policy_hash": None if self.policy is None else self.policy.hash,
            "requested_retention": None if self.policy is None else self.policy.retention_ratio,
            "measured_on": dict(self.described),
            "tasks": {task: summary([answer for _, answer in all_]) for task, all_ in self.answers.items()},
            "requests": [
                {
                    "task": task,
                    "doc_id": doc_id,
                    "retention_ratio": one.retention_ratio,
                    "ttft_ms": one.ttft_ms,
                    "input_tokens": one.input_tokens,
                    "output_tokens": one.output_tokens,
                }
                for task, answers in self.answers.items()
                for doc_id, one in answers
            ],
        }

    def write(self, path: Path) -> None:
        """Write the document, over an earlier one. Raises as `write_atomically` does."""
        from vidsieve.tuner.atomic_files import write_atomically

        write_atomically(path, json.dumps(self.to_dict(), indent=1), force=True, what="--model_args report")


def summary(answers: Sequence[Answered]) -> dict[str, float]:
    """The mean attained retention of requests with a video, and the median time to the first token, in milliseconds."""
    ratios = [one.retention_ratio for one in answers if one.retention_ratio is not None]
    times = [one.ttft_ms for one in answers if one.ttft_ms is not None]
    found = {"num_requests": float(len(answers))}
    if ratios:
        found["attained_retention"] = fmean(ratios)
    if times:
        found["ttft_ms"] = median(times)
    return found
