"""Threads, copies and blocks: whatever the order, answers are those of single calls and the model is as it was."""

import copy
import io
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters.test_caller_view import POLICIES
from torch import Tensor

import vidsieve
from vidsieve.framework.errors import UsageError
from vidsieve.testing.adapter_kit import ALL, HALF, Row, run, traces

OPTIONS = {"max_new_tokens": 5, "do_sample": False}


def together(*works: Callable[[], Any]) -> list[Any]:
    """What each of the works returned or raised, all run at once in threads of their own."""
    results: list[Any] = [None] * len(works)

    def keep(index: int, work: Callable[[], Any]) -> None:
        try:
            results[index] = work()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=keep, args=one) for one in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_calls_from_several_threads_answer_as_single_calls(kit: Any, model: Any, policy: Any) -> None:
    prompts = [kit.make_inputs(model, Row(seed=seed)) for seed in range(3)]
    plain, state = model.generate(**prompts[0], **OPTIONS), traces(model)
    with vidsieve.applied(model, policy):
        alone = [model.generate(**inputs, **OPTIONS) for inputs in prompts]

    def work(index: int) -> list[Tensor]:
        return [model.generate(**prompts[index], **OPTIONS) for _ in range(2)]

    with vidsieve.applied(model, policy) as block:
        found = together(*(lambda index=index: work(index) for index in range(3)))
    for answers, expected in zip(found, alone, strict=True):
        assert all(torch.equal(answer, expected) for answer in answers)
    assert len(block.reports) == 6
    assert traces(model) == state
    assert torch.equal(model.generate(**prompts[0], **OPTIONS), plain)


def test_a_call_that_breaks_lets_the_others_go_on(kit: Any, model: Any) -> None:
    inputs, state = kit.make_inputs(model, Row()), traces(model)

    def breaks(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        raise KeyboardInterrupt

    for policy in POLICIES.values():
        expected = run(model, policy, inputs, **OPTIONS)[0].sequences
        with vidsieve.applied(model, policy):
            found = together(
                lambda: model.generate(**inputs, **OPTIONS, stopping_criteria=[breaks]),
                lambda: model.generate(**inputs, **OPTIONS),
                lambda: model.generate(**inputs, **OPTIONS, stopping_criteria=[breaks]),
                lambda: model.generate(**inputs, **OPTIONS),
            )
        assert [type(one) for one in found[::2]] == [KeyboardInterrupt] * 2
        assert all(torch.equal(one, expected) for one in found[1::2])
        assert traces(model) == state


def test_a_block_ends_when_the_calls_begun_in_it_have(kit: Any, model: Any) -> None:
    inputs, state = kit.make_inputs(model, Row()), traces(model)
    expected = run(model, HALF, inputs, **OPTIONS)[0].sequences
    begun, found = threading.Event(), []

    def slow(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        begun.set()
        time.sleep(0.02)
        return torch.zeros(len(ids), dtype=torch.bool)

    with vidsieve.applied(model, HALF) as block:
        thread = threading.Thread(
            target=lambda: found.append(model.generate(**inputs, **OPTIONS, stopping_criteria=[slow]))
        )
        thread.start()
        begun.wait(60)
        late = model.generate
    assert len(found) == len(block.reports) == 1
    assert torch.equal(found[0], expected)
    assert traces(model) == state
    with pytest.raises(UsageError, match=r"block of policy 'under-test' has ended"):
        late(**inputs, **OPTIONS)
    thread.join()


def test_a_second_block_from_another_thread_is_refused(kit: Any, model: Any) -> None:
    def second() -> None:
        with vidsieve.applied(model, ALL):
            pass

    with vidsieve.applied(model, HALF):
        (error,) = together(second)
        assert isinstance(error, UsageError)
        assert "already applied to this model from another thread" in str(error)
        assert model.generate.handle.policy is HALF
    assert "generate" not in vars(model)
    second()


def test_a_call_from_within_a_call_is_refused(kit: Any, model: Any) -> None:
    inputs, state = kit.make_inputs(model, Row()), traces(model)

    def nested(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        model.generate(**inputs, **OPTIONS)
        raise AssertionError("the nested call ran")

    with vidsieve.applied(model, HALF), pytest.raises(UsageError, match="from within a running call"):
        model.generate(**inputs, **OPTIONS, stopping_criteria=[nested])
    assert traces(model) == state


def test_a_custom_generate_folder_may_call_generate_again(kit: Any, model: Any, tmp_path: Any) -> None:
    folder = tmp_path / "custom_generate"
    folder.mkdir()
    (folder / "generate.py").write_text("def generate(model, **given):\n    return model.generate(**given)\n")
    inputs = kit.make_inputs(model, Row())
    with vidsieve.applied(model, HALF) as block:
        plain = model.generate(**inputs, **OPTIONS)
        custom = model.generate(**inputs, **OPTIONS, custom_generate=str(tmp_path), trust_remote_code=True)
    assert torch.equal(custom, plain)
    assert len(block.reports) == 2


def test_a_block_is_entered_once(kit: Any, model: Any) -> None:
    block = vidsieve.applied(model, HALF)
    with block:
        with pytest.raises(UsageError, match="is open already"), block:
            pass
        assert "generate" in vars(model)
    with pytest.raises(UsageError, match=r"has ended.*Call `applied"), block:
        pass
    assert not {"generate", "__reduce_ex__"} & set(vars(model))


def through_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle, protocol 0": lambda model: pickle.loads(pickle.dumps(model, 0)),
    "pickle in Python": lambda model: pickle._loads(pickle._dumps(model)),  # type: ignore[attr-defined]
    "torch.save": through_torch,
    "inside another module": lambda model: copy.deepcopy(torch.nn.Sequential(model))[0],
}


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
def test_a_copy_made_in_a_block_has_no_policy(kit: Any, model: Any, way: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    plain = model.generate(**inputs, **OPTIONS)
    # fresh, because hooks that transformers installs at a first call cannot be pickled
    fresh = kit.build_model()
    with vidsieve.applied(fresh, HALF) as block:
        copied = way(fresh)
        assert torch.equal(copied.generate(**inputs, **OPTIONS), plain)
        assert block.reports == []
        fresh.generate(**inputs, **OPTIONS)
        assert len(block.reports) == 1
    assert set(vars(copied)) == set(vars(fresh))
    with vidsieve.applied(copied, HALF) as block:
        copied.generate(**inputs, **OPTIONS)
        assert len(block.reports) == 1


def test_a_copy_of_the_method_is_that_of_a_copy_of_the_model(kit: Any, model: Any) -> None:
    with vidsieve.applied(model, HALF) as block:
        copied = copy.deepcopy(model.generate)
        assert copied.__self__ is not model
        assert copied.__func__ is type(model).generate
        assert "generate" not in vars(copy.deepcopy(block).model)


def test_save_pretrained_in_a_block_saves_the_model(kit: Any, model: Any, tmp_path: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    plain = model.generate(**inputs, **OPTIONS)
    with vidsieve.applied(model, HALF):
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.generate(**inputs, **OPTIONS), plain)


def test_a_generate_of_the_callers_own_is_in_copies_and_back_after_the_block(kit: Any, model: Any) -> None:
    model = copy.deepcopy(model)
    model.generate = own = Doubled()
    with vidsieve.applied(model, HALF):
        copied = copy.deepcopy(model)
    assert model.generate is own
    assert isinstance(copied.generate, Doubled)


class Doubled:
    def __call__(self, **inputs: Any) -> Any:
        raise AssertionError("not called")


def test_a_copy_waits_for_a_running_call_and_from_within_one_it_is_refused(kit: Any, model: Any) -> None:
    inputs = kit.make_inputs(model, Row())
    begun, copies = threading.Event(), []

    def slow(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        begun.set()
        time.sleep(0.02)
        return torch.zeros(len(ids), dtype=torch.bool)

    def within(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        copy.deepcopy(model)
        raise AssertionError("it was copied")

    def copying() -> None:
        begun.wait(60)
        copies.append(copy.deepcopy(model))

    state = [(name, hooks, kernel) for name, _, hooks, kernel in traces(model)]
    for policy in POLICIES.values():
        begun.clear()
        with vidsieve.applied(model, policy):
            together(lambda: model.generate(**inputs, **OPTIONS, stopping_criteria=[slow]), copying)
            with pytest.raises(UsageError, match="cannot be copied or pickled from within"):
                model.generate(**inputs, **OPTIONS, stopping_criteria=[within])
        assert [(name, hooks, kernel) for name, _, hooks, kernel in traces(copies[-1])] == state
