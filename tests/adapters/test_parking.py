"""Visual entries that wait in host memory: answers, reports and caches are those of entries held in place."""

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from adapters.kernels import KERNELS, kernel
from adapters.test_llava_onevision import TestLlavaOnevision as LlavaOnevision
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import DynamicLayer

from vidsieve import load_policy
from vidsieve.adapters.decoder.decode_kv import attach_kv
from vidsieve.adapters.decoder.parked_layer import ParkedLayer
from vidsieve.framework.errors import PlanError
from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.plans import KeepKV
from vidsieve.framework.records import DecodeStep
from vidsieve.policies.dycoke import DynamicKV
from vidsieve.testing.adapter_decoder_kit import KeepKeys, TopKV, TopLayer
from vidsieve.testing.adapter_kit import BATCHES, KeepRandom, Row, logits, policy_of, run

KITS: dict[str, Any] = {"three axes": Qwen2VL(), "one axis": LlavaOnevision()}
LONG = {"max_new_tokens": 8}


class Drifts(TopKV):
    """Read a window of entries that moves by one with each step, so that each step swaps one."""

    ratio: float = 0.3
    start: int = 0

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        turn = torch.zeros(len(step.counts), 1, dtype=torch.long) if step.state is None else step.state["turn"] + 1
        counts = torch.tensor(step.counts)[:, None]
        wide = [int(count * self.ratio) for count in step.counts]
        place = torch.arange(max(wide))
        index = torch.where(place < torch.tensor(wide)[:, None], (place + turn) % counts.clamp(min=1), -1)
        return KeepKV(index, torch.ones(len(wide), dtype=torch.bool), state={"turn": turn})


STAGES: dict[str, tuple[Any, ...]] = {
    "attention": (TopKV(),),
    "drift": (Drifts(),),
    "few": (Drifts(ratio=0.05),),
    "none": (TopKV(ratio=0.0),),
    "all": (TopKV(ratio=1.0),),
    "behind another": (TopKV(after=0, ratio=0.7), Drifts(after=1)),
    "two at a layer": (TopKV(ratio=0.7), Drifts()),
    "behind a shorter prompt": (KeepRandom(), TopLayer(keep_ratio=0.6, after=(0, 2)), Drifts()),
    "behind eviction": (KeepKeys(ratio=0.6), Drifts(ratio=0.5)),
    "dycoke": (DynamicKV(layer=2, threshold=0.9999, rest="held"),),
}


def parked(stages: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same, the last one parking."""
    how = {"rest": "parked"} if isinstance(stages[-1], DynamicKV) else {"parked": True}
    return *stages[:-1], stages[-1].model_copy(update=how)


def both(stages: tuple[Any, ...]) -> tuple[Any, Any]:
    ratio = 0.5 if any(isinstance(stage, TopLayer) for stage in stages) else None
    return policy_of(*stages, ratio=ratio), policy_of(*parked(stages), ratio=ratio)


@pytest.fixture(params=KITS.values(), ids=KITS)
def kit(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(kit: Any) -> Any:
    return kit.build_model()


@contextmanager
def parked_layers() -> Iterator[list[Any]]:
    """While open, the layers that are made to park."""
    found: list[Any] = []
    make = ParkedLayer.__init__

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        found.append(self)

    ParkedLayer.__init__ = watched  # type: ignore[method-assign]
    try:
        yield found
    finally:
        ParkedLayer.__init__ = make  # type: ignore[method-assign]


def same_caches(first: Any, second: Any, tolerance: float) -> bool:
    """Whether two caches are of one class and hold the same, layer by layer."""
    return all(
        type(one) is type(other) is DynamicLayer
        and torch.allclose(one.keys, other.keys, atol=tolerance)
        and torch.allclose(one.values, other.values, atol=tolerance)
        for one, other in zip(first.layers, second.layers, strict=True)
    )


CASES = [
    pytest.param(KITS[axes], STAGES[name], rows, id=f"{axes}-{name}-b{len(rows)}")
    for axes, names in (("three axes", STAGES), ("one axis", ("drift", "behind eviction", "dycoke")))
    for name in names
    for rows in ((Row(videos=2),), BATCHES["uneven batch"])
]


@pytest.mark.parametrize(("kit", "stages", "rows"), CASES)
def test_parked_answers_as_held(kit: Any, stages: Any, rows: tuple[Row, ...]) -> None:
    model = kit.build_model()
    inputs, (held, park) = kit.make_inputs(model, *rows), both(stages)
    expected, first = run(model, held, inputs, **LONG)
    with parked_layers() as layers:
        output, report = run(model, park, inputs, **LONG)
    assert len(layers) == len(expected.past_key_values.layers) - 1 - stages[-1].layers(4)[0]
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)
    assert same_caches(output.past_key_values, expected.past_key_values, kit.tolerance)
    assert (report.kv_ratio, report.kv_full_bytes) == (first.kv_ratio, first.kv_full_bytes)
    # slots are as many in every row, so that short rows have some to spare
    assert report.kv_resident_bytes <= first.kv_resident_bytes or stages[-1].ratio == 1.0
    assert report.not_run == ()


@pytest.mark.parametrize("attention", KERNELS)
def test_every_kernel_agrees_with_what_is_held(kit: Any, model: Any, attention: str) -> None:
    inputs, (held, park) = kit.make_inputs(model, *BATCHES["uneven batch"]), both((Drifts(),))
    with kernel(model, attention):
        expected, output = (run(model, policy, inputs, **LONG)[0] for policy in (held, park))
    assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)


@pytest.mark.parametrize("rows", [(Row(),), BATCHES["uneven batch"]], ids=["b1", "b2"])
def test_beams_take_their_slots_along(kit: Any, model: Any, rows: tuple[Row, ...]) -> None:
    inputs, (held, park) = kit.make_inputs(model, *rows), both((TopKV(),))
    options = LONG | {"num_beams": 3, "output_scores": True, "length_penalty": 0.0}
    expected, output = (run(model, policy, inputs, **options)[0] for policy in (held, park))
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.allclose(output.sequences_scores, expected.sequences_scores, atol=1e-4)


def test_the_resident_part_at_three_tenths_of_a_deep_model_is_less_than_045(kit: Any, model: Any) -> None:
    # 28 layers, the choice made after layer 2, as published; the tiny model has 4, made after layer 0
    stage = load_policy("dycoke").kv_stages[0].stage
    (after,) = stage.layers(28)
    assert (after + 1 + (28 - after - 1) * (1 - stage.drop_ratio)) / 28 < 0.45
    _, report = run(model, policy_of(stage), kit.make_inputs(model, Row(videos=2)), **LONG)
    visual = report.kept_tokens
    assert report.kv_resident_bytes * 4 * visual == report.kv_full_bytes * (visual + 3 * int(0.3 * visual + 1e-9))


def test_the_grown_cache_is_let_go_and_slots_stay_where_they_are(
    kit: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown: list[Any] = []
    places: dict[int, set[int]] = {}
    update, write = DynamicLayer.update, ParkedLayer.update

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        keys, values = update(self, *args, **kwargs)
        grown.extend((weakref.ref(keys), weakref.ref(values)))
        return keys, values

    def written(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert sum(one() is not None for one in grown) <= 2 * 2  # layers 0 and 1 alone still grow
        keys, values = write(self, *args, **kwargs)
        places.setdefault(id(self), set()).add(keys.untyped_storage().data_ptr())
        return keys, values

    monkeypatch.setattr(DynamicLayer, "update", watched)
    monkeypatch.setattr(ParkedLayer, "update", written)
    run(model, policy_of(Drifts(parked=True)), kit.make_inputs(model, Row()), **LONG)
    assert [len(one) for one in places.values()] == [1, 1]


def test_buffers_grow_when_an_answer_is_long(kit: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsieve.adapters.decoder.parked_layer._SPARE", 2)
    inputs, (held, park) = kit.make_inputs(model, *BATCHES["uneven batch"]), both((Drifts(),))
    expected, output = (run(model, policy, inputs, max_new_tokens=14)[0] for policy in (held, park))
    assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)


class Copies:
    """A logits processor that copies the cache in the middle of a call."""

    def __init__(self, model: Any) -> None:
        self.cache: Any = None
        self.copies: list[Any] = []
        self.handle = model.get_decoder().register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.cache = kwargs["past_key_values"]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        layers = getattr(self.cache, "layers", [])
        self.copies.append([copy.deepcopy(layer) for layer in layers])
        return scores


def test_a_copy_made_in_the_middle_of_a_call_is_of_plain_layers_that_hold_everything(kit: Any, model: Any) -> None:
    inputs, (held, park) = kit.make_inputs(model, *BATCHES["uneven batch"]), both((Drifts(),))
    found = []
    for policy in (held, park):
        copies = Copies(model)
        run(model, policy, inputs, **LONG, logits_processor=[copies])
        copies.handle.remove()
        found.append(copies.copies[6])
    for one, other in zip(*found, strict=True):
        assert type(one) is type(other) is DynamicLayer
        assert torch.allclose(one.keys, other.keys, atol=kit.tolerance)


@pytest.mark.parametrize("options", ["static", "static object"])
def test_a_cache_that_cannot_park_is_read_in_place_and_the_report_says_so(kit: Any, model: Any, options: str) -> None:
    inputs, (held, park) = kit.make_inputs(model, Row()), both((Drifts(),))
    text = model.config.get_text_config()
    how: dict[str, Any] = {"cache_implementation": "static"}
    if options == "static object":
        how = {"past_key_values": StaticCache(config=text, max_cache_len=200)}
    expected, first = run(model, held, inputs)
    output, report = run(model, park, inputs, **how)
    assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)
    assert first.notes == ()
    assert len(report.notes) == 1 and "stayed in the cache, because a cache layer of type Static" in report.notes[0]
    assert report.kv_resident_bytes == report.kv_full_bytes


class Breaks(Drifts):
    """Fail, or answer wrongly, in the third step."""

    how: str = "raise"

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        plan = Drifts.prune_kv(self, step)
        if plan.state is None or int(plan.state["turn"][0]) < 2:
            return plan
        if self.how == "raise":
            raise ZeroDivisionError("on purpose")
        if self.how == "idle":
            return KeepKV(plan.index, torch.zeros_like(plan.active), state=plan.state)
        return KeepKV(torch.cat([plan.index, plan.index], dim=1), plan.active, state=plan.state)


@pytest.mark.parametrize(("how", "words"), [("idle", r"active must be True.*no room"), ("wide", "keep the width")])
def test_what_there_are_no_slots_for_is_refused(kit: Any, model: Any, how: str, words: str) -> None:
    with pytest.raises(PlanError, match=f"stage-0.*{words}"):
        run(model, policy_of(Breaks(how=how, parked=True)), kit.make_inputs(model, Row()), **LONG)


class Rests(Drifts):
    """Say of rows without visual tokens that nothing is to be done."""

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        plan = Drifts.prune_kv(self, step)
        return KeepKV(plan.index, step.valid.any(dim=1), state=plan.state)


def test_rows_without_a_video_may_be_idle(kit: Any, model: Any) -> None:
    rows = (Row(), Row(videos=0, seed=4, words=9))
    inputs, (held, park) = kit.make_inputs(model, *rows), both((Rests(),))
    expected, output = (run(model, policy, inputs, **LONG)[0] for policy in (held, park))
    assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)


def test_a_call_that_fails_leaves_the_cache_it_was_given_with_everything_in_place(kit: Any, model: Any) -> None:
    first, _ = run(model, policy_of(KeepRandom(), ratio=0.5), kit.make_inputs(model, Row()))
    ids = torch.cat([first.sequences, torch.tensor([[kit.words[7], kit.words[8]]])], dim=1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    caches = []
    for parks in (False, True):
        cache = copy.deepcopy(first.past_key_values)
        with pytest.raises(Exception, match="on purpose"):
            run(model, policy_of(Breaks(parked=parks)), {**turn, "past_key_values": cache}, **LONG)
        caches.append(cache)
    assert same_caches(*caches, kit.tolerance)


@torch.no_grad()
def test_requests_one_after_the_other_on_a_bare_model(kit: Any, model: Any) -> None:
    lm, words = model.get_decoder(), [kit.words[place % 70] for place in range(3, 40)]
    found: dict[bool, list[Tensor]] = {}
    for parks in (False, True):
        with attach_kv(model, [Drifts(parked=parks)], (4, 20)):
            for start in (0, 5):
                ids, cache = torch.tensor([words[start : start + 30]]), None
                for part in ids.split([26, 1, 1, 2], dim=1):
                    output = lm(input_ids=part, past_key_values=cache, use_cache=True)
                    cache = output.past_key_values
                    found.setdefault(parks, []).append(output.last_hidden_state)
        assert all(type(layer) is DynamicLayer for layer in cache.layers)
    for one, other in zip(*found.values(), strict=True):
        assert torch.allclose(one, other, atol=kit.tolerance)
