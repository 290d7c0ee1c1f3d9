"""Which composition is tried next: from what trials told of its stages."""

import itertools

import numpy as np
from tuner.composing import grammar

from vidsieve.tuner.search.structure import Observation, best_first, draw

MADE = grammar()


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_compositions_come_in_falling_order_of_worth_and_none_is_missing() -> None:
    made = MADE
    worth = dict(zip(made.stages, _rng(0).normal(size=len(made.stages)).tolist(), strict=True))
    found = list(best_first(made, worth))
    assert len(found) == made.count()
    assert set(found) == set(made.skeletons())
    sums = [sum(worth[name] for name in each if name is not None) for each in found]
    assert all(before >= after - 1e-9 for before, after in itertools.pairwise(sums))


def test_stages_of_good_policies_are_drawn_more_often_than_those_of_bad_ones() -> None:
    made = MADE
    seen = [Observation(("planted.score", "test.top"), 0.9), Observation(("fake.score", "fake.top"), 0.6)] * 3
    drawn = [draw(made, seen, set(), _rng(seed)) for seed in range(40)]
    good, bad = (sum(name in (each or ()) for each in drawn) for name in ("planted.score", "fake.score"))
    assert good > 2 * bad


def test_what_failed_is_drawn_less_than_what_nobody_tried() -> None:
    made = MADE
    seen = [Observation(("test.cuts", "test.in-segments"), None), Observation(("planted.score", "test.top"), 0.8)]
    seen += [Observation(("fake.score", "test.top"), 0.85)]
    drawn = [draw(made, seen, set(), _rng(seed)) for seed in range(40)]
    assert sum("test.in-segments" in (each or ()) for each in drawn) < 10


def test_no_composition_is_drawn_twice_and_the_end_is_told() -> None:
    made = MADE
    tried: set[tuple[str | None, ...]] = set()
    for _ in range(made.count()):
        found = draw(made, [], tried, _rng(len(tried)))
        assert found is not None
        assert found not in tried
        tried.add(found)
    assert draw(made, [], tried, _rng(0)) is None


def test_the_same_observations_and_seed_draw_the_same() -> None:
    seen = [Observation(("planted.score", "test.top"), 0.9)]
    first, second = (draw(MADE, seen, set(), _rng(5)) for _ in range(2))
    assert first == second
