"""Laws of prefix sharing: prompts about one video go on from copies of one cache as if each had been run whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vidsieve.adapters.prefix_sharing import branched, continued, first_columns, shared_columns, shares_prefixes
from vidsieve.framework.policy.policy import Policy
from vidsieve.testing.adapter_kit import EMPTY, HALF, KeepRandom, ModelKit, Row, adapter_for, logits, policy_of, run

COMPACT = policy_of(KeepRandom(), ratio=0.5, positions="compact")
WORDS = (1, 9, 4)


class PrefixLaws(ModelKit):
    """Where the family's cache cannot be shared, `shares_prefixes` says so and the laws are skipped."""

    @pytest.mark.parametrize("policy", [EMPTY, HALF, COMPACT], ids=["empty", "half", "compact"])
    def test_prompts_behind_one_prefix_answer_as_each_alone(self, model: Any, policy: Policy) -> None:
        prompts, inputs = self._prompts(model)
        alone = [run(model, policy, self._inputs_of(model, inputs, one)) for one in prompts]
        count = shared_columns(adapter_for(model), model, inputs, prompts)
        prefix = first_columns(inputs, count)
        output, report = run(model, policy, prefix, max_new_tokens=1)
        assert all(torch.equal(report.keeps[0], other.keeps[0]) for _, other in alone)
        shared = prefix["input_ids"][0]
        for _ in range(2):  # the cache is as it was
            rows = continued(shared, [one[count:] for one in prompts], pad_id=0)
            cache = branched(output.past_key_values, len(prompts))
            together, _ = run(model, policy, rows | {"past_key_values": cache})
            for row, (one, _) in enumerate(alone):
                assert torch.allclose(logits(together)[row], logits(one)[0], atol=self.tolerance)

    def test_a_prefix_ends_behind_its_video_and_is_none_for_prompts_that_differ_before(self, model: Any) -> None:
        prompts, inputs = self._prompts(model)
        adapter = adapter_for(model)
        count = shared_columns(adapter, model, inputs, prompts)
        assert 0 < count < min(map(len, prompts))
        other = prompts[1].clone()
        other[0] += 1
        assert shared_columns(adapter, model, inputs, [prompts[0], other]) == 0
        assert shared_columns(adapter, model, inputs, [prompts[0], prompts[0][:count]]) == 0

    def _prompts(self, model: Any) -> tuple[list[Tensor], dict[str, Any]]:
        """Prompts that ask differently about one video, and the inputs of the first."""
        if not shares_prefixes(model):
            pytest.skip("a cache of this family cannot be shared")
        inputs = self.make_inputs(model, Row(words=max(WORDS)))
        ids = inputs["input_ids"][0]
        start = len(ids) - max(WORDS)
        ends = [self.make_inputs(model, Row(seed=5 + count, words=count))["input_ids"][0, -count:] for count in WORDS]
        prompts = [torch.cat([ids[:start], end]) for end in ends]
        return prompts, self._inputs_of(model, inputs, prompts[0])

    def _inputs_of(self, model: Any, inputs: dict[str, Any], ids: Tensor) -> dict[str, Any]:
        """The same video with other ids."""
        return inputs | self.token_types(model, ids[None]) | _ids(ids)


def _ids(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
