"""Laws of signals: what stages may know of the vision side, against the tower's own eager weights and the pixels."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vidsieve.framework.errors import InputError, StageError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import Keep, KeepFrames
from vidsieve.framework.records import FrameBatch, VideoTokens
from vidsieve.framework.stage import Stage
from vidsieve.testing.adapter_compile import flash_attention
from vidsieve.testing.adapter_kit import (
    BATCHES,
    HALF,
    ModelKit,
    Row,
    adapter_for,
    layouts_of,
    logits,
    policy_of,
    run,
    traces,
    unpatched,
)

ATTENTION, BEFORE, CHANGE = "vision_attention", "pre_merger_features", "pixel_difference"


class Looks(Stage):
    """Keep everything, and write down what is shown."""

    names: tuple[str, ...] = (ATTENTION,)
    only_wants: bool = False
    breaks: bool = False

    def needs(self) -> frozenset[str]:
        """The signals, unless they are only wanted."""
        return frozenset() if self.only_wants else frozenset(self.names)

    def wants(self) -> frozenset[str]:
        """The signals."""
        return frozenset(self.names)

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        """All that is alive."""
        SEEN.append(tokens)
        if self.breaks:
            raise ZeroDivisionError("on purpose")
        return Keep(tokens.keep)


class EveryOther(Stage):
    """Encode every other unit, from the first on."""

    data_dependent = True

    @hookimpl
    def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
        """0, 2, 4, …"""
        return KeepFrames(torch.arange(len(frames.pixels)) % 2 == 0)


SEEN: list[VideoTokens] = []


def shown(model: Any, inputs: dict[str, Any], *stages: Stage, **options: Any) -> list[VideoTokens]:
    """What a stage that keeps everything is shown of each video."""
    SEEN.clear()
    run(model, policy_of(*stages, ratio=1.0, exact=False), inputs, max_new_tokens=1, **options)
    return list(SEEN)


@contextmanager
def eager_weights(model: Any) -> Iterator[dict[Any, list[Tensor]]]:
    """While open, the weights [frames heads queries keys] of each attention module, from the model's eager path."""
    seen: dict[Any, list[Tensor]] = {}
    homes: set[Any] = {
        sys.modules[type(one).__module__] for one in model.modules() if "Attention" in type(one).__name__
    }
    kept = {home: home.eager_attention_forward for home in homes if hasattr(home, "eager_attention_forward")}
    given = model.config._attn_implementation

    def watching(original: Any) -> Any:
        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            output, weights = original(module, *args, **kwargs)
            seen.setdefault(module, []).append(weights)
            return output, weights

        return forward

    try:
        model.set_attn_implementation("eager")
        for home, original in kept.items():
            home.eager_attention_forward = watching(original)
        yield seen
    finally:
        model.set_attn_implementation(given)
        for home, original in kept.items():
            home.eager_attention_forward = original


class SignalLaws(ModelKit):
    """Signals that the adapter offers; what it does not is refused by name (see `CallLaws`).

    pooled        override it where a token is not the mean of four patches that stand behind one another
    signal_layer  the vision layer that makes the features, counted over those that ran
    class_rows    [CLS] rows of a frame
    """

    signal_layer: int = -1
    class_rows: int = 0

    def pooled(self, model: Any, inputs: dict[str, Any], values: list[Tensor]) -> Tensor:
        """[frames patches] in the tower's order to one value a token, all videos behind one another."""
        return torch.cat([part.flatten() for part in values]).view(-1, 4).mean(dim=1)

    def encoder(self, model: Any) -> tuple[str, Any]:
        """The name of the vision side's method, and the method."""
        name = f"get_{adapter_for(model).modality}_features"
        return name, getattr(model.base_model, name)

    def offered(self, model: Any, *signals: str) -> None:
        """Skip a law about signals that the family does not offer; `CallLaws` has it refuse them."""
        for signal in signals:
            if signal not in adapter_for(model).offers:
                pytest.skip(f"this family does not offer {signal}")

    def truth(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        """Mean eager weight that each token of each video receives, in the unmodified model."""
        _, encoder = self.encoder(model)
        tower = {one for child in ("visual", "vision_tower", "video_tower") for one in _modules(model, child)}
        taken = {key: inputs[key] for key in inspect.signature(encoder).parameters if key in inputs}
        with torch.no_grad(), eager_weights(model) as seen:
            encoder(**taken)
        weights = [parts for module, parts in seen.items() if module in tower][self.signal_layer]
        rows = slice(0, 1) if self.class_rows else slice(None)
        received = [part[:, :, rows].mean(dim=(1, 2))[:, self.class_rows :] for part in weights]
        videos = [layout for layout in layouts_of(model, inputs) if layout.visual]
        tokens = self.pooled(model, inputs, received).split([layout.visual for layout in videos])
        return [part.view(one.frames, one.tokens) for part, one in zip(tokens, videos, strict=True)]

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_vision_attention_is_what_the_eager_weights_of_the_tower_say(self, model: Any, attention: str) -> None:
        self.offered(model, ATTENTION)
        model.set_attn_implementation(attention)
        inputs = self.make_inputs(model, Row(videos=2))
        expected = self.truth(model, inputs)
        seen = shown(model, inputs, Looks())
        for tokens, values in zip(seen, expected, strict=True):
            found = tokens.signals[ATTENTION]
            assert found.dtype == torch.float32
            assert torch.allclose(found, values, atol=1e-5)
            assert bool((found > 0).all())
            assert found.std() > 1e-4 * found.mean()

    def test_vision_attention_under_flash_attention_is_the_same(self, model: Any) -> None:
        self.offered(model, ATTENTION)
        inputs = self.make_inputs(model, Row(videos=2))
        expected = [tokens.signals[ATTENTION] for tokens in shown(model, inputs, Looks())]
        with flash_attention(model, model.config.vision_config):
            found = [tokens.signals[ATTENTION] for tokens in shown(model, inputs, Looks())]
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-5)

    def test_what_enters_the_merger_is_shown_token_by_token(self, model: Any) -> None:
        self.offered(model, BEFORE)
        inputs = self.make_inputs(model, Row())
        (tokens,) = shown(model, inputs, Looks(names=(BEFORE,)))
        values = tokens.signals[BEFORE]
        assert values.shape[:2] == tokens.keep.shape
        assert torch.allclose(values, self.before_merger(model, inputs).view_as(values), atol=1e-5)

    def patch_states(self, model: Any, taken: dict[str, Any]) -> Tensor:
        """Hidden states in front of the merger, that the vision side gives out itself."""
        states = self.encoder(model)[1](**taken, output_hidden_states=True, return_dict=True)
        return states.last_hidden_state if states.hidden_states is None else states.hidden_states[self.signal_layer]

    def before_merger(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """[tokens width] of one video."""
        _, encoder = self.encoder(model)
        taken = {key: inputs[key] for key in inspect.signature(encoder).parameters if key in inputs}
        with torch.no_grad():
            last = self.patch_states(model, taken)
        columns = last[:, self.class_rows :] if last.dim() == 3 else last[None]
        return torch.stack([self.pooled(model, inputs, [one]) for one in columns.unbind(dim=-1)], dim=-1)

    def test_pixel_difference_is_that_of_the_pixels_under_a_token(self, model: Any) -> None:
        self.offered(model, CHANGE)
        inputs = self.make_inputs(model, Row())
        (tokens,) = shown(model, inputs, Looks(names=(CHANGE,)))
        found, units = tokens.signals[CHANGE], self._units(model, inputs)
        change = (units[1:] - units[:-1]).abs().mean(dim=(1, 2))
        assert found.dtype == torch.float32
        assert found[0].isinf().all()
        assert torch.allclose(found[1:].flatten(), self.pixels_pooled(model, change).flatten(), atol=1e-5)

    def pixels_pooled(self, model: Any, change: Tensor) -> Tensor:
        """[units height width] to one mean a token; by default each covers a square of merged patches."""
        side = model.config.vision_config.patch_size * model.config.vision_config.spatial_merge_size
        return change.unflatten(2, (-1, side)).unflatten(1, (-1, side)).mean(dim=(2, 4))

    def _units(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The pixels of the only video, as a stage of step 1 sees them."""
        seen: list[Tensor] = []

        class Takes(EveryOther):
            @hookimpl
            def reduce_frames(self, frames: FrameBatch) -> KeepFrames:
                seen.append(frames.pixels)
                return KeepFrames(torch.ones(len(frames.pixels), dtype=torch.bool))

        run(model, policy_of(Takes()), inputs, max_new_tokens=1)
        return seen[0]

    def test_a_still_video_has_no_pixel_difference_behind_its_first_unit(self, model: Any) -> None:
        self.offered(model, CHANGE)
        inputs = self.make_inputs(model, Row())
        inputs["pixel_values_videos"] = torch.ones_like(inputs["pixel_values_videos"])
        (tokens,) = shown(model, inputs, Looks(names=(CHANGE,)))
        assert not tokens.signals[CHANGE][1:].any()

    def test_signals_are_those_of_the_units_that_were_encoded(self, model: Any) -> None:
        self.offered(model, ATTENTION, BEFORE, CHANGE)
        inputs = self.make_inputs(model, Row(videos=2))
        stage = Looks(names=(ATTENTION, BEFORE, CHANGE))
        whole, skipped = shown(model, inputs, stage), shown(model, inputs, EveryOther(), stage)
        for all_units, some in zip(whole, skipped, strict=True):
            for name in (ATTENTION, BEFORE):
                assert torch.allclose(some.signals[name], all_units.signals[name][::2], atol=1e-5)
            assert some.signals[CHANGE].shape == some.keep.shape
            assert some.signals[CHANGE][0].isinf().all()
            assert not torch.allclose(some.signals[CHANGE][1:], all_units.signals[CHANGE][2::2], atol=1e-3)

    def test_signals_of_a_padded_batch_are_those_of_its_rows_alone(self, model: Any) -> None:
        self.offered(model, ATTENTION)
        stage = Looks(names=tuple(sorted({ATTENTION, BEFORE, CHANGE} & adapter_for(model).offers)))
        rows = BATCHES["uneven batch"]
        together = shown(model, self.make_inputs(model, *rows), stage)
        alone = [tokens for row in rows for tokens in shown(model, self.make_inputs(model, row), stage)]
        for one, other in zip(together, alone, strict=True):
            assert all(torch.allclose(one.signals[name], other.signals[name], atol=1e-5) for name in stage.names)

    def test_taking_signals_changes_no_bit_of_the_model(self, model: Any) -> None:
        self.offered(model, ATTENTION)
        inputs = self.make_inputs(model, Row(videos=2))
        stage = Looks(names=(ATTENTION, BEFORE, CHANGE), only_wants=True)
        assert torch.equal(logits(run(model, policy_of(stage, ratio=1.0), inputs)[0]), logits(unpatched(model, inputs)))

    def test_the_tower_is_listened_to_only_when_a_stage_asks(self, model: Any) -> None:
        self.offered(model, ATTENTION)
        inputs, (name, encoder) = self.make_inputs(model, Row()), self.encoder(model)
        during: list[Any] = []

        def watching(*args: Any, **kwargs: Any) -> Any:
            during.append(_listeners(model))
            return encoder(*args, **kwargs)

        watching.__signature__ = inspect.signature(encoder)  # type: ignore[attr-defined]
        setattr(model.base_model, name, watching)
        quiet = _listeners(model)
        run(model, HALF, inputs)
        shown(model, inputs, Looks())
        shown(model, inputs, Looks(only_wants=True))
        delattr(model.base_model, name)
        assert during[0] == quiet
        assert quiet not in during[1:]

    def test_nothing_is_left_when_the_tower_or_the_stage_raises(self, model: Any) -> None:
        self.offered(model, ATTENTION)
        inputs = self.make_inputs(model, Row())
        unpatched(model, inputs)  # transformers installs hooks of its own at a model's first call
        state = traces(model)
        with pytest.raises(StageError, match=r"stage-0.*on purpose"):
            shown(model, inputs, Looks(breaks=True))
        assert traces(model) == state

        def breaks(module: Any, args: Any) -> None:
            raise ZeroDivisionError("in the tower")

        modules = [one for child in ("visual", "vision_tower", "video_tower") for one in _modules(model, child)]
        last = [one for one in modules if type(one).__name__.lower().endswith("mlp")][-1]
        handle = last.register_forward_pre_hook(breaks)
        with pytest.raises(ZeroDivisionError, match="in the tower"):
            shown(model, inputs, Looks())
        handle.remove()
        assert traces(model) == state

    def test_features_that_came_computed_cannot_have_signals(self, model: Any) -> None:
        self.offered(model, ATTENTION)
        inputs, (_, encoder) = self.make_inputs(model, Row()), self.encoder(model)
        taken = {key: inputs[key] for key in inspect.signature(encoder).parameters if key in inputs}
        inputs["mm_encoder_outputs"] = {adapter_for(model).modality: encoder(**taken)}
        for name in ("pixel_values", "pixel_values_videos"):
            inputs.pop(name, None)
        with pytest.raises(InputError, match=r"mm_encoder_outputs.*needs vision_attention"):
            shown(model, inputs, Looks())
        assert shown(model, inputs, Looks(only_wants=True))[0].signals == {}


def _modules(model: Any, child: str) -> list[Any]:
    part = getattr(model.base_model, child, None)
    return [] if part is None else list(part.modules())


def _listeners(model: Any) -> list[Any]:
    """Hooks and attention settings of every module, those of modules without a name for it too."""
    found = []
    for _, module in model.named_modules():
        config = getattr(module, "config", None)
        found.append((len(module._forward_pre_hooks), getattr(config, "_attn_implementation", None)))
    return found
