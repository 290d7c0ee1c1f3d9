"""A stage: a frozen record of settings that is itself and nobody else."""

from typing import Literal

import numpy
import pydantic
import pytest
import torch
from framework.kit import Best, Norm, policy, ramp

from vidsieve.framework.hookspecs import hookimpl
from vidsieve.framework.planning.checks import call, callers
from vidsieve.framework.plans import Scores
from vidsieve.framework.records import VideoShape, VideoTokens
from vidsieve.framework.stage import Stage, tunable
from vidsieve.testing import video_tokens


class Settings(Stage):
    """One setting of every kind."""

    power: float = tunable(1, low=0.5, high=2.0)
    count: int = tunable(3, low=1, high=9)
    mode: Literal["a", "b"] = "a"
    flag: bool = tunable(False)
    limit: float | None = tunable(None, low=0.0, high=1.0)
    layers_at: tuple[int, ...] = (1, 2)

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features[..., 0].float())


def test_two_stages_of_equal_settings_are_two_stages() -> None:
    one, other = Norm(), Norm()
    assert one != other
    assert one == one
    assert hash(one) == id(one)
    assert len({one, other}) == 2


def test_identity_survives_subclasses_with_settings_of_their_own() -> None:
    class Louder(Norm):
        volume: float = tunable(2.0, low=1.0, high=11.0)

    one, other = Louder(), Louder()
    assert one != other
    assert hash(one) == id(one)


def test_the_same_stage_twice_in_a_policy_runs_twice() -> None:
    stage = Best(keep_ratio=0.5)
    twice = policy(("score", Norm()), ("first", stage), ("again", Norm()), ("second", stage))
    assert twice.plan(ramp(2, 8)).report.kept_tokens == 4


def test_settings_cannot_be_changed_in_place() -> None:
    stage = Norm()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        stage.sign = 2.0


def test_whole_numbers_are_taken_for_fractions_and_become_them() -> None:
    assert type(Settings.build({"power": 2}).power) is float
    assert type(Settings().power) is float, "also where the default was written as a whole number"


def test_a_scalar_of_torch_or_numpy_becomes_a_plain_number() -> None:
    assert type(Settings.build({"power": torch.tensor(1.5)}).power) is float
    assert type(Settings.build({"power": numpy.float32(1.5)}).power) is float


def test_lists_of_a_policy_file_reach_tuple_settings() -> None:
    assert Settings.build({"layers_at": [4, 8]}).layers_at == (4, 8)
    assert Settings.build({"layers_at": (4, 8)}).layers_at == (4, 8)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"power": "1.0"}, "number"),
        ({"power": True}, "number"),
        ({"power": 3.0}, "less than or equal to 2"),
        ({"power": 0.4}, "greater than or equal to 0.5"),
        ({"power": float("nan")}, "finite|less than"),
        ({"power": float("inf")}, "finite|less than"),
        ({"limit": float("nan")}, "finite|less than"),
        ({"power": None}, "number"),
        ({"power": torch.ones(2)}, "number"),
        ({"count": torch.tensor(1.0)}, "integer"),
        ({"count": 2.0}, "integer"),
        ({"count": True}, "integer"),
        ({"count": 0}, "greater than or equal to 1"),
        ({"mode": "c"}, "'a' or 'b'"),
        ({"flag": 1}, "boolean"),
        ({"flag": "yes"}, "boolean"),
        ({"layers_at": "12"}, "array|tuple"),
        ({"layers_at": [1, "2"]}, "integer"),
        ({"colour": 1}, "not permitted|Extra"),
    ],
)
def test_a_setting_of_the_wrong_kind_or_size_is_refused(values: dict[str, object], word: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=word):
        Settings.build(values)


def test_hooks_are_listed_in_house_order_whatever_the_order_of_the_class() -> None:
    class Backwards(Stage):
        @hookimpl
        def select_tokens(self, tokens: VideoTokens) -> None: ...

        @hookimpl
        def budget_frames(self, tokens: VideoTokens) -> None: ...

        @hookimpl
        def segment_frames(self, tokens: VideoTokens) -> None: ...

    assert Backwards.hooks() == ("segment_frames", "budget_frames", "select_tokens")
    assert Backwards.writes() == ("segments", "budget")


def test_a_hook_of_a_base_class_is_inherited() -> None:
    class Child(Norm):
        pass

    assert Child.hooks() == ("score_tokens",)
    scores = call("here", Child(sign=-1.0), "score_tokens", video_tokens(2, 4, 3))
    assert isinstance(scores, Scores)


def test_a_hook_may_leave_out_its_argument() -> None:
    class Constant(Stage):
        @hookimpl
        def score_tokens(self) -> Scores:
            return Scores(torch.ones(2, 4))

    assert call("here", Constant(), "score_tokens", video_tokens(2, 4, 3)).values.sum() == 8


def test_looking_a_stage_up_reads_none_of_its_other_attributes() -> None:
    class Touchy(Stage):
        @property
        def expensive(self) -> int:
            raise RuntimeError("read by somebody")

        @hookimpl
        def score_tokens(self, tokens: VideoTokens) -> Scores:
            return Scores(tokens.features[..., 0])

    assert callers(Touchy())


def test_callers_are_built_once_per_stage() -> None:
    stage = Norm()
    assert callers(stage) is callers(stage)
    assert callers(stage) is not callers(Norm())


def test_a_stage_that_reduces_may_by_default_leave_one_token_to_all() -> None:
    class Reducer(Stage):
        @hookimpl
        def select_tokens(self, tokens: VideoTokens) -> None: ...

    assert Reducer().attainable(VideoShape(4, 5)) == (1 / 20, 1.0)
    assert Norm().attainable(VideoShape(4, 5)) == (1.0, 1.0)


def test_the_number_of_offered_tokens_honours_what_is_alive() -> None:
    shape = VideoShape(3, 4, alive=(4, 0, 1))
    assert (shape.per_frame, shape.total) == ((4, 0, 1), 5)
    assert VideoShape(3, 4).total == 12
