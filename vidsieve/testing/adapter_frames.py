"""Laws of step 1: units that a policy skips never reach the vision tower, and nothing else changes."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import vidsieve
from vidsieve.framework.errors import InputError, PolicyError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, KeepFrames
from vidsieve.framework.records import FrameBatch, VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_kit import HARDEST, KeepRandom, ModelKit, Row, adapter_for, logits, policy_of, run

PIXELS = "pixel_values_videos"


class SomeUnits(Stage):
    """Encode the first unit, not the last, and each other by the toss of a coin."""

    data_dependent = True

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        """At least one stays, and at least one of several goes."""
        mask = torch.rand(len(frames.pixels), generator=frames.rng) > 0.5
        mask[-1], mask[0] = False, True
        return KeepFrames(mask)


def keeping(masks: list[Tensor]) -> Stage:
    """A stage that keeps these tokens of the first, second, … video it is shown."""
    left = iter(masks)

    class Given(Stage):
        data_dependent = True

        @hookimpl
        def select_tokens(self, tokens: VideoTokens) -> Keep:
            return Keep(next(left))

    return Given()


class FrameLaws(ModelKit):
    """Units skipped before the vision tower; a family whose units depend on each other must refuse instead."""

    @pytest.fixture(autouse=True)
    def _independent(self, model: Any, request: pytest.FixtureRequest) -> None:
        if hasattr(FrameLaws, request.node.originalname) and "reduce_frames" not in adapter_for(model).runs:
            with pytest.raises(PolicyError, match=r"stage-0.*reduce_frames"):
                run(model, policy_of(SomeUnits()), self.make_inputs(model, Row()))
            pytest.skip("this family does not skip units, and says so")

    @pytest.mark.parametrize("rows", HARDEST.values(), ids=HARDEST)
    def test_skipping_equals_dropping_their_tokens_behind_the_tower(self, model: Any, rows: tuple[Row, ...]) -> None:
        inputs = self.make_inputs(model, *rows)
        skipped, report = run(model, policy_of(SomeUnits()), inputs)
        dropped, other = run(model, policy_of(keeping(list(report.keeps))), inputs)
        assert report.not_run == ()
        assert report.baseline_tokens == other.baseline_tokens
        assert all(torch.equal(a, b) for a, b in zip(report.keeps, other.keeps, strict=True))
        assert report.attained_ratio < 1
        if self.lead_rows:  # the lead row of a unit that was not encoded goes as well
            return
        assert torch.allclose(logits(skipped), logits(dropped), atol=self.tolerance)

    def test_the_tower_never_sees_a_skipped_unit(self, model: Any) -> None:
        inputs, (encoder, calls) = self.make_inputs(model, Row(videos=2)), self._watched(model)
        output, report = run(model, policy_of(SomeUnits()), inputs)
        delattr(model.base_model, encoder)
        poisoned = self._poisoned(inputs[PIXELS], [keep.any(dim=1) for keep in report.keeps])
        left = int((~poisoned.isnan()).sum())
        assert left < poisoned.numel()
        assert sum(call.numel() for call in calls) == left
        again, _ = run(model, policy_of(SomeUnits()), inputs | {PIXELS: poisoned})
        assert torch.equal(logits(output), logits(again))

    def test_later_stages_spend_the_ratio_on_what_was_encoded(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        _, report = run(model, policy_of(SomeUnits(), KeepRandom(), ratio=0.25), inputs)
        assert report.kept_tokens == report.baseline_tokens // 4
        assert not report.keeps[0][-1].any()

    def test_stages_see_pixels_unit_by_unit(self, model: Any) -> None:
        seen: list[FrameBatch] = []

        class Looks(Stage):
            data_dependent = True

            @hookimpl
            def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
                seen.append(frames)
                return KeepFrames(torch.ones(len(frames.pixels), dtype=torch.bool))

        inputs = self.make_inputs(model, Row())
        run(model, policy_of(Looks()), inputs)
        units = seen[0].pixels
        assert (units.shape[0], units.shape[2]) == (4, 3)
        assert units.numel() == inputs[PIXELS].numel()
        assert torch.allclose(units.float().sum(), inputs[PIXELS].sum(), atol=1e-2)

    def test_compressed_inputs_for_a_plain_forward_skip_too(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        expected = logits(run(model, policy_of(SomeUnits()), inputs)[0])[:, 0]
        short, report = vidsieve.compress(model, inputs, policy_of(SomeUnits()))
        with torch.no_grad():
            assert torch.allclose(model(**short).logits[:, -1], expected, atol=self.tolerance)
        assert report.attained_ratio < 1

    def test_features_instead_of_pixels_are_refused(self, model: Any) -> None:
        inputs = self.make_inputs(model, Row())
        encoder = model.base_model.get_video_features
        taken = {name: inputs[name] for name in inspect.signature(encoder).parameters if name in inputs}
        inputs["mm_encoder_outputs"] = {"video": encoder(**taken)}
        del inputs[PIXELS]
        with pytest.raises(InputError, match="reduce_frames"):
            run(model, policy_of(SomeUnits()), inputs)

    def _watched(self, model: Any) -> tuple[str, list[Tensor]]:
        """The vision side, replaced on the instance by one that writes down the pixels it is given."""
        name, calls = "get_video_features", []
        encoder = getattr(model.base_model, name)

        def watching(pixel_values_videos: Tensor, **others: Any) -> Any:
            calls.append(pixel_values_videos)
            return encoder(pixel_values_videos=pixel_values_videos, **others)

        watching.__signature__ = inspect.signature(encoder)  # type: ignore[attr-defined]
        setattr(model.base_model, name, watching)
        return name, calls

    def _poisoned(self, pixels: Tensor, units: list[Tensor]) -> Tensor:
        """The pixels with NaN in every skipped unit."""
        skipped, poisoned = ~torch.cat(units), pixels.clone()
        if pixels.dim() == 5:
            poisoned[skipped.view(pixels.shape[:2])] = torch.nan
            return poisoned
        ends = [len(keep) for keep in units]
        rows = [part.unflatten(0, (count, -1)) for part, count in zip(self._videos(pixels), ends, strict=True)]
        for part, keep in zip(rows, units, strict=True):
            part[~keep] = torch.nan
        return torch.cat([part.flatten(0, 1) for part in rows])

    def _videos(self, pixels: Tensor) -> list[Tensor]:
        """Flat patches of the two videos of a prompt, apart."""
        first = self.make_video(0)[PIXELS]
        return [pixels[: len(first)].clone(), pixels[len(first) :].clone()]
