"""What is worked out once for a policy or a stage lives as long as it does, and is not copied."""

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator

import pytest
import torch

from vidsieve import load_policy
from vidsieve.framework.planning.attainable import LayerCounts, prune_points
from vidsieve.framework.planning.checks import callers
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.stage import Stage, cached_on_owner
from vidsieve.harness.process.messages import to_document
from vidsieve.testing.samples import made_signals, video_features


def used(name: str) -> Policy:
    """A policy after everything that is remembered of it was asked."""
    policy = load_policy(name)
    features = video_features(8, 16, 16)
    signals = made_signals(policy.needs(), 8, 16)
    policy.plan(features, token_grid=(8, 4, 4), signals=signals, layers=32)
    policy.attainable(VideoShape(8, 16, 32))
    to_document(policy)
    counts = LayerCounts(policy, baseline=128, offered=128, layers=32)
    for point in prune_points(policy, 32):
        counts.ask(point)
    return policy


def stages_alive() -> int:
    gc.collect()
    return sum(issubclass(type(one), Stage) for one in gc.get_objects())


@pytest.fixture
def new_objects_only() -> Iterator[None]:
    """The collector leaves alone what is there already, which takes it seconds to go through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("new_objects_only")
@pytest.mark.parametrize("name", ["vidcom2", "dycoke", "pyramiddrop", "framefusion", "sttm", "visionzip"])
def test_a_policy_that_is_let_go_takes_its_stages_along(name: str) -> None:
    used(name)
    before = stages_alive()
    policy = used(name)
    watched = [weakref.ref(policy), *(weakref.ref(bound.stage) for bound in policy.stages)]
    assert stages_alive() > before
    del policy
    assert stages_alive() == before
    assert [ref() for ref in watched] == [None] * len(watched)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_of_a_used_policy_begin_anew_and_plan_the_same(copied) -> None:
    policy, features = used("dycoke"), video_features(8, 16, 16)
    other = copied(policy)
    assert other.hash == policy.hash
    assert torch.equal(other.plan(features).keep, policy.plan(features).keep)
    assert copied(policy.stages[0].stage).model_dump() == policy.stages[0].stage.model_dump()


def test_a_changed_copy_of_a_stage_is_called_itself() -> None:
    stage = load_policy("dycoke", settings={"dycoke.temporal-merge.drop_ratio": 0.5}).stages[0].stage
    callers(stage)
    other = stage.model_copy(update={"drop_ratio": 0.9})
    (found,) = callers(other)["select_tokens"].get_hookimpls()
    assert found.plugin is other


def test_results_are_kept_on_the_owner_and_only_so_many_of_them() -> None:
    asked = []

    @cached_on_owner(2)
    def double(stage: Stage, number: int) -> int:
        asked.append(number)
        return 2 * number

    one, other = (load_policy("vidcom2").stages[0].stage for _ in range(2))
    assert [double(one, 1), double(one, 1), double(other, 1)] == [2, 2, 2]
    assert asked == [1, 1]
    for number in (2, 3, 1):
        double(one, number)
    assert asked == [1, 1, 2, 3, 1]
