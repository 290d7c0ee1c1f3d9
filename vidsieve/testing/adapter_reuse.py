"""Laws of what is computed once and used by many calls.

Videos that come encoded: features taken earlier, one video a pass, give what the pixels give, bit by bit. Prompts about
one video that go on from copies of one cache give what each gives that was run whole.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import vidsieve
from vidsieve.adapters.prefix_sharing import branched, continued, first_columns, shared_columns, shares_prefixes
from vidsieve.adapters.vision.encoded_videos import EncodedClip, EncodedVideos
from vidsieve.adapters.vision.signals import take
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import SIGNALS, VideoTokens
from vidsieve.testing.adapter_frames import SomeUnits, keeping
from vidsieve.testing.adapter_kit import (
    BATCHES,
    EMPTY,
    HALF,
    HARDEST,
    KeepRandom,
    ModelKit,
    Row,
    adapter_for,
    logits,
    policy_of,
    run,
    unpatched,
)
from vidsieve.testing.adapter_signals import SEEN, EveryOther, Looks


class Videos:
    """The videos of a batch, encoded one a pass, as a `VideoSource`; signals are taken when they are asked for."""

    def __init__(self, kit: ModelKit, model: Any, *rows: Row) -> None:
        self._model, self._adapter, self.inputs = model, adapter_for(model), kit.make_inputs(model, *rows)
        self._videos = [
            kit.make_video(row.seed * 10 + index, row.frames[index % len(row.frames)])
            for row in rows
            for index in range(row.videos)
        ]

    def encoded(self, names: Collection[str] = ()) -> list[EncodedClip]:
        """One pass of the tower for each video."""
        with torch.no_grad():
            passes = [take(self._model, self._adapter, [video], names) for video in self._videos]
        return [EncodedClip.of(output, signals) for (output,), signals in passes]

    def signals(self, names: Collection[str]) -> dict[str, Tensor]:
        """These signals of all videos in succession."""
        clips = self.encoded(names)
        return {name: torch.cat([clip.signals[name] for clip in clips]) for name in names}

    def pixels(self) -> dict[str, Any]:
        """What the tower would have been given."""
        return {name: value for name, value in self.inputs.items() if name.startswith("pixel_")}

    def in_place_of_pixels(self) -> dict[str, Any]:
        """The inputs of the batch with features in place of pixels."""
        rest = {name: value for name, value in self.inputs.items() if not name.startswith("pixel_")}
        videos = EncodedVideos.of(self.encoded(), self)
        return rest | {"mm_encoder_outputs": {self._adapter.modality: videos}}


@contextmanager
def without_tower(model: Any) -> Iterator[None]:
    """While open, the vision tower must not be asked for."""
    name = f"get_{adapter_for(model).modality}_features"
    setattr(model.base_model, name, lambda *args, **kwargs: pytest.fail("the vision tower ran"))
    try:
        yield
    finally:
        delattr(model.base_model, name)


class EncodedLaws(ModelKit):
    """Features that were taken earlier stand for pixels, whatever the policy asks."""

    @pytest.mark.parametrize("rows", HARDEST.values(), ids=HARDEST)
    @pytest.mark.parametrize("policy", [None, HALF], ids=["no policy", "half"])
    def test_a_clip_encoded_before_gives_the_same_bits(
        self, model: Any, rows: tuple[Row, ...], policy: Policy | None
    ) -> None:
        videos = Videos(self, model, *rows)
        known = videos.in_place_of_pixels()
        if policy is None:
            expected = unpatched(model, videos.inputs)
            with without_tower(model):
                found = unpatched(model, known)
        else:
            expected = run(model, policy, videos.inputs)[0]
            with without_tower(model):
                found = run(model, policy, known)[0]
        assert torch.equal(logits(found), logits(expected))
        assert torch.equal(found.sequences, expected.sequences)

    def test_a_clip_encoded_before_serves_a_plain_forward(self, model: Any) -> None:
        videos = Videos(self, model, Row(videos=2, words=4))
        known = videos.in_place_of_pixels()
        expected, _ = vidsieve.compress(model, videos.inputs, HALF)
        found, _ = vidsieve.compress(model, known, HALF)
        with torch.no_grad():
            assert torch.equal(model(**found).logits, model(**expected).logits)

    @pytest.mark.parametrize("skipping", [False, True], ids=["all units", "some units"])
    @pytest.mark.parametrize("rows", [BATCHES["uneven batch"], BATCHES["padded batch"]], ids=["two videos", "padded"])
    @pytest.mark.parametrize("signal", sorted(SIGNALS))
    def test_stages_are_shown_the_same_signals_and_features(
        self, model: Any, rows: tuple[Row, ...], signal: str, skipping: bool
    ) -> None:
        adapter = adapter_for(model)
        if signal not in adapter.offers or (skipping and not adapter.units_independent):
            pytest.skip("this family does not offer that")
        videos = Videos(self, model, *rows)
        stages = [*([EveryOther()] if skipping else []), Looks(names=(signal,)), KeepRandom()]
        policy = policy_of(*stages, ratio=0.25)
        expected, found = (
            self._seen(model, videos.inputs, policy),
            self._seen(model, videos.in_place_of_pixels(), policy),
        )
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.features, other.features)
            assert torch.equal(one.signals[signal], other.signals[signal])
            assert one.frame_index.tolist() == other.frame_index.tolist()

    def _seen(self, model: Any, inputs: Mapping[str, Any], policy: Policy) -> list[VideoTokens]:
        SEEN.clear()
        run(model, policy, dict(inputs), max_new_tokens=1)
        return list(SEEN)

    @pytest.mark.parametrize("rows", HARDEST.values(), ids=HARDEST)
    def test_units_are_taken_out_of_what_is_known(self, model: Any, rows: tuple[Row, ...]) -> None:
        if not adapter_for(model).units_independent:
            pytest.skip("this family does not skip units")
        videos, policy = Videos(self, model, *rows), policy_of(SomeUnits())
        known = videos.in_place_of_pixels()
        expected, report = run(model, policy, videos.inputs)
        with without_tower(model):
            found, other = run(model, policy, known)
        assert all(torch.equal(a, b) for a, b in zip(report.keeps, other.keeps, strict=True))
        # a pass over fewer units may round otherwise; the rows are those of the pass over all of them
        assert torch.allclose(logits(found), logits(expected), atol=self.tolerance)
        if not self.lead_rows:
            rows_of_all, _ = run(model, policy_of(keeping(list(report.keeps))), videos.inputs)
            assert torch.equal(logits(found), logits(rows_of_all))


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
