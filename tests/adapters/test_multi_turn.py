"""A cache carries what was removed with it: through copies, files and row selections, and past the end of the block."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters.test_llava_onevision import TestLlavaOnevision as LlavaOnevision
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from torch import Tensor
from transformers import DynamicCache, StaticCache

from vidsieve.framework.errors import InputError
from vidsieve.testing.adapter_decoder_kit import KeepKeys, TopKV, TopLayer
from vidsieve.testing.adapter_kit import EMPTY, HALF, STEPS, KeepRandom, Row, logits, policy_of, run, unpatched

KITS: dict[str, Any] = {"three axes": Qwen2VL(), "one axis": LlavaOnevision()}
LAYERS = policy_of(TopLayer(), ratio=0.7)
POLICIES = {
    "before the model": HALF,
    "layers": LAYERS,
    "renumbered layers": policy_of(TopLayer(), ratio=0.7, positions="compact"),
    "renumbered": policy_of(KeepRandom(), ratio=0.5, positions="compact"),
    "KV": policy_of(KeepRandom(), TopKV(), ratio=0.5),
    "parked": policy_of(KeepRandom(), TopKV(parked=True), ratio=0.5),
    "evicted": policy_of(KeepRandom(), KeepKeys(), ratio=0.5),
}


def saved(cache: Any) -> Any:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": lambda cache: copy.copy(copy.deepcopy(cache)),
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
    "torch.save": saved,
}


@pytest.fixture(params=KITS.values(), ids=KITS)
def kit(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(kit: Any) -> Any:
    return kit.build_model()


def asked(kit: Any, sequences: Tensor, *words: int) -> dict[str, Tensor]:
    """The conversation so far with a further question."""
    new = torch.tensor([[kit.words[word] for word in words]]).expand(len(sequences), -1)
    ids = torch.cat([sequences, new], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_copied_cache_answers_as_the_cache_does(kit: Any, model: Any, policy: Any) -> None:
    first, _ = run(model, policy, kit.make_inputs(model, Row()))
    turn = asked(kit, first.sequences, 7, 8, 9)
    copies = {name: way(first.past_key_values) for name, way in WAYS.items()}
    expected, _ = run(model, policy, {**turn, "past_key_values": first.past_key_values})
    for name, cache in copies.items():
        output, _ = run(model, policy, {**turn, "past_key_values": cache})
        assert torch.equal(logits(output), logits(expected)), name


def test_a_prompt_filled_once_answers_every_question_as_the_whole_prompt_does(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    cache = run(model, HALF, inputs | {"past_key_values": DynamicCache()}, max_new_tokens=1)[0].past_key_values
    for words in ((7, 8, 9), (30, 31)):
        turn = asked(kit, inputs["input_ids"], *words)
        whole, _ = run(model, HALF, inputs | kit.token_types(model, turn["input_ids"]) | turn)
        again, report = run(model, HALF, inputs | turn | {"past_key_values": copy.deepcopy(cache)})
        assert torch.allclose(logits(whole), logits(again), atol=kit.tolerance)
        assert report.baseline_tokens == 0


@pytest.mark.parametrize("policy", [HALF, LAYERS], ids=["before the model", "layers"])
def test_another_policy_continues_what_is_there(kit: Any, model: Any, policy: Any) -> None:
    first, _ = run(model, policy, kit.make_inputs(model, Row()))
    turn = asked(kit, first.sequences, 7, 8, 9)
    others = {name: copy.deepcopy(first.past_key_values) for name in POLICIES if name not in ("KV", "parked")}
    expected, _ = run(model, policy, {**turn, "past_key_values": first.past_key_values})
    for name, cache in others.items():
        output, _ = run(model, POLICIES[name], {**turn, "past_key_values": cache})
        assert torch.equal(logits(output), logits(expected)), name


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_after_the_block_a_shortened_cache_is_refused_in_words(kit: Any, model: Any, policy: Any) -> None:
    first, _ = run(model, policy, kit.make_inputs(model, Row()))
    turn = asked(kit, first.sequences, 7, 8, 9)
    length = first.past_key_values.get_seq_length()
    for cache in [way(first.past_key_values) for way in WAYS.values()]:
        for options in ({}, {"prefill_chunk_size": 2}, {"prompt_lookup_num_tokens": 2}, {"num_beams": 2}):
            with pytest.raises(InputError, match=r"holds \d+ of the \d+ tokens.*with applied"):
                model.generate(**turn, **options, past_key_values=cache, max_new_tokens=2)
        with pytest.raises(InputError, match="with applied"):
            model(input_ids=turn["input_ids"][:, -4:], past_key_values=cache)
        assert isinstance(cache, DynamicCache)
        assert cache.get_seq_length() == length
    again, _ = run(model, policy, {**turn, "past_key_values": first.past_key_values})
    assert again.sequences.shape[1] == turn["input_ids"].shape[1] + STEPS


@pytest.mark.parametrize("policy", [EMPTY, policy_of(TopKV(ratio=1.0))], ids=["nothing", "KV"])
def test_a_cache_that_holds_everything_is_an_ordinary_one(kit: Any, model: Any, policy: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    unpatched(model, inputs)  # leaves M-RoPE's offset on the model, which transformers continues with
    first, _ = run(model, policy, inputs)
    turn = asked(kit, first.sequences, 7, 8, 9)
    assert type(first.past_key_values) is DynamicCache
    expected, _ = run(model, policy, {**turn, "past_key_values": copy.deepcopy(first.past_key_values)})
    output = unpatched(model, {**turn, "past_key_values": first.past_key_values})
    assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)


@pytest.mark.parametrize("policy", [HALF, LAYERS], ids=["before the model", "layers"])
def test_rows_of_a_cache_may_be_selected_and_repeated(kit: Any, model: Any, policy: Any) -> None:
    rows = (Row(videos=2, words=4), Row(seed=1, words=9))
    first, _ = run(model, policy, kit.make_inputs(model, *rows))
    turn = asked(kit, first.sequences, 7, 8, 9)
    mask = torch.cat([kit.make_inputs(model, *rows)["attention_mask"], torch.ones(2, STEPS + 3)], dim=1).long()
    moves: dict[str, tuple[list[int], Callable[[Any], None]]] = {
        "batch_select_indices": ([1], lambda cache: cache.batch_select_indices(torch.tensor([1]))),
        "reorder_cache": ([1, 0], lambda cache: cache.reorder_cache(torch.tensor([1, 0]))),
        "batch_repeat_interleave": ([0, 0, 1, 1], lambda cache: cache.batch_repeat_interleave(2)),
    }
    caches = {name: copy.deepcopy(first.past_key_values) for name in moves}
    inputs = {**turn, "attention_mask": mask}
    together, _ = run(model, policy, inputs | {"past_key_values": first.past_key_values})
    for name, (index, move) in moves.items():
        move(caches[name])
        moved = {key: value[index] for key, value in inputs.items()}
        output, _ = run(model, policy, moved | {"past_key_values": copy.deepcopy(caches[name])})
        assert torch.allclose(logits(output), logits(together)[index], atol=kit.tolerance), name
    with pytest.raises(InputError, match="2 prompts, got 1"):
        run(model, policy, asked(kit, first.sequences[:1], 7) | {"past_key_values": caches["reorder_cache"]})
    cut = caches["batch_repeat_interleave"]
    for layer in cut.layers:
        layer.batch_select_indices(torch.tensor([0, 1]))
    with pytest.raises(InputError, match="has 2 rows"):
        run(model, policy, {key: value[[0, 0, 1, 1]] for key, value in inputs.items()} | {"past_key_values": cut})


def test_a_cropped_copy_continues_from_where_it_was_cut(kit: Any, model: Any) -> None:
    first, _ = run(model, HALF, kit.make_inputs(model, Row()))
    short = asked(kit, first.sequences[:, :-2], 7, 8, 9)
    cropped = copy.deepcopy(first.past_key_values)
    cropped.crop(-1)
    whole, _ = run(model, HALF, kit.make_inputs(model, Row()) | kit.token_types(model, short["input_ids"]) | short)
    warm, _ = run(model, HALF, short | {"past_key_values": cropped})
    assert torch.allclose(logits(whole), logits(warm), atol=kit.tolerance)


def test_a_cache_in_one_memory_block_carries_it_too(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    expected, _ = run(model, HALF, inputs)
    turn = asked(kit, expected.sequences, 7, 8, 9)
    expected, _ = run(model, HALF, turn | {"past_key_values": expected.past_key_values})
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=200)
    run(model, HALF, inputs | {"past_key_values": static})
    copied = copy.deepcopy(static)
    for cache in (static, copied):
        with pytest.raises(InputError, match="with applied"):
            model.generate(**turn, past_key_values=cache, max_new_tokens=2)
        output, _ = run(model, HALF, turn | {"past_key_values": cache})
        assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)
    turn = {"input_ids": output.sequences, "attention_mask": torch.ones_like(output.sequences)}
    with pytest.raises(InputError, match=r"room for 200 tokens, but \d+ would be cached"):
        run(model, HALF, turn | {"past_key_values": copied}, max_new_tokens=170)
    static.reset()
    assert type(static) is StaticCache
    assert torch.equal(
        unpatched(model, inputs | {"past_key_values": static}).sequences, unpatched(model, inputs).sequences
    )


def test_lengths_that_do_not_fit_are_refused_before_the_model_runs(kit: Any, model: Any) -> None:
    first, _ = run(model, HALF, kit.make_inputs(model, Row()))
    turn, cache = asked(kit, first.sequences, 7, 8, 9), first.past_key_values
    # what a caller gets who cuts the conversation by the cache's own length
    new = turn["input_ids"][:, cache.get_seq_length() :]
    with pytest.raises(InputError, match=r"attention_mask: covers \d+ tokens.*stands for"):
        run(model, HALF, turn | {"input_ids": new, "past_key_values": cache})
    with pytest.raises(InputError, match="do not continue"):
        run(model, HALF, {"input_ids": turn["input_ids"][:, -4:], "past_key_values": cache})
    layer = cache.layers[2]
    layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
    with pytest.raises(InputError, match="layer 2 holds"):
        run(model, HALF, turn | {"past_key_values": cache})
    for layer in cache.layers:
        layer.keys, layer.values = (part[:, :, [*range(20), *range(15)]] for part in (layer.keys, layer.values))
    with pytest.raises(InputError, match=r"extended by other means"):
        run(model, HALF, turn | {"past_key_values": cache})


def test_a_copy_made_by_hand_is_refused_where_it_shows(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row(words=2))
    first, _ = run(model, HALF, inputs, max_new_tokens=1)
    turn = asked(kit, inputs["input_ids"], 7)
    cache = DynamicCache([(layer.keys, layer.values) for layer in first.past_key_values.layers])
    with pytest.raises(InputError, match=r"hold (video placeholders|no new).*past_key_values"):
        run(model, HALF, turn | {"past_key_values": cache})


class Stops(Exception):
    """What a caller raises to break a call off."""


def test_a_call_that_breaks_off_leaves_a_cache_that_is_not_mistaken_for_another(kit: Any, model: Any) -> None:
    inputs, cache = kit.make_inputs(model, Row()), DynamicCache()

    class Streamer:
        left = 3

        def put(self, value: Tensor) -> None:
            self.left -= 1
            if not self.left:
                raise Stops

        def end(self) -> None: ...

    with pytest.raises(Stops):
        run(model, HALF, inputs | {"past_key_values": cache}, streamer=Streamer())
    turn = asked(kit, inputs["input_ids"], 7, 8, 9)
    with pytest.raises(InputError, match="with applied"):
        model.generate(**turn, past_key_values=cache, max_new_tokens=2)
    with pytest.raises(InputError, match="Crop it by 1"):
        run(model, HALF, turn | {"past_key_values": cache})
    cache.crop(-1)
    warm, _ = run(model, HALF, turn | {"past_key_values": cache})
    whole, _ = run(model, HALF, inputs | kit.token_types(model, turn["input_ids"]) | turn)
    assert torch.allclose(logits(whole), logits(warm), atol=kit.tolerance)


def test_an_uncompressed_prefix_is_continued_uncompressed(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    first = unpatched(model, inputs)
    turn = asked(kit, first.sequences, 7, 8, 9)
    expected = unpatched(model, turn | {"past_key_values": copy.deepcopy(first.past_key_values)})
    for pixels in ({}, inputs | kit.token_types(model, turn["input_ids"])):
        cache = copy.deepcopy(first.past_key_values)
        output, report = run(model, HALF, pixels | turn | {"past_key_values": cache})
        assert torch.equal(output.sequences, expected.sequences)
        assert report.not_run == ("stage-0",)


def turns(kit: Any, model: Any, old: tuple[Row, ...], new: tuple[Row, ...]) -> dict[str, Any]:
    """A first turn, and what a second one may be given: the pictures `new` alone, or those of both turns."""
    first, then = kit.make_inputs(model, *old), kit.make_inputs(model, *new)
    output, _ = run(model, HALF, first)
    ids = torch.cat([output.sequences, then["input_ids"]], dim=1)
    mask = torch.cat([first["attention_mask"], torch.ones(len(ids), STEPS), then["attention_mask"]], dim=1).long()
    pictures: dict[str, list[list[dict[str, Tensor]]]] = {"new": [], "both": []}
    for before, after in zip(old, new, strict=True):
        pair: list[list[dict[str, Tensor]]] = []
        for row in (before, after):
            images = [kit.make_image(row.seed * 10 + index) for index in range(row.images)]
            videos = [
                kit.make_video(row.seed * 10 + index, row.frames[index % len(row.frames)])
                for index in range(row.videos)
            ]
            pair.append([*images, *videos])
        pictures["new"].append(pair[1])
        pictures["both"].append([*pair[0], *pair[1]])
    given = {name: kit.join(rows) for name, rows in pictures.items()}
    return {"cache": output.past_key_values, "turn": {"input_ids": ids, "attention_mask": mask}, **given}


CONVERSATIONS = {
    "two videos, then two others": ((Row(videos=2),), (Row(seed=3, videos=2),)),
    "images beside videos": ((Row(images=1),), (Row(seed=3, images=2),)),
    "an image, then a video": ((Row(videos=0, images=1),), (Row(seed=3),)),
    "text, then a video": ((Row(videos=0),), (Row(seed=3),)),
    "a video, then an image": ((Row(),), (Row(seed=3, videos=0, images=1),)),
    "rows": ((Row(), Row(seed=1)), (Row(seed=3, words=4), Row(seed=4, words=6))),
}


@pytest.mark.parametrize("rows", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_turn_takes_the_new_pictures_of_those_of_both(kit: Any, model: Any, rows: Any) -> None:
    seen = turns(kit, model, *rows)
    expected, report = run(model, HALF, seen["turn"] | seen["new"] | {"past_key_values": copy.deepcopy(seen["cache"])})
    width = seen["turn"]["input_ids"].shape[1]
    length = width - kit.make_inputs(model, *rows[1])["input_ids"].shape[1]
    new_only = seen["turn"] | {"input_ids": seen["turn"]["input_ids"][:, length - 1 :]}
    whole, _ = run(model, HALF, seen["turn"] | kit.token_types(model, seen["turn"]["input_ids"]) | seen["both"])
    if rows[0][0].videos == 0:  # else the new videos are not the first of their row, and draw other numbers
        assert torch.allclose(logits(whole), logits(expected), atol=kit.tolerance)
    for turn in (seen["turn"], new_only):
        cache = copy.deepcopy(seen["cache"])
        output, found = run(model, HALF, turn | seen["both"] | {"past_key_values": cache})
        assert torch.equal(logits(output), logits(expected))
        assert found.baselines == report.baselines


def test_features_of_both_turns_are_taken_like_their_pixels(kit: Any, model: Any) -> None:
    seen = turns(kit, model, *CONVERSATIONS["two videos, then two others"])
    expected, _ = run(model, HALF, seen["turn"] | seen["new"] | {"past_key_values": copy.deepcopy(seen["cache"])})
    names = [name for name in seen["both"] if name.startswith("pixel")]
    features = model.base_model.get_video_features(**seen["both"])
    rest = {name: value for name, value in seen["both"].items() if name not in names}
    turn = seen["turn"] | rest | {"mm_encoder_outputs": {"video": features}}
    output, _ = run(model, HALF, turn | {"past_key_values": seen["cache"]})
    assert torch.allclose(logits(output), logits(expected), atol=kit.tolerance)


def test_pictures_that_fit_no_turn_are_refused_in_true_words(kit: Any, model: Any) -> None:
    seen = turns(kit, model, (Row(),), (Row(seed=3),))
    three = kit.join([[kit.make_video(seed) for seed in (0, 5, 30)]])
    with pytest.raises(InputError, match=r"videos that came with past_key_values fit neither the \d+ .* nor the \d+"):
        run(model, HALF, seen["turn"] | three | {"past_key_values": seen["cache"]})
