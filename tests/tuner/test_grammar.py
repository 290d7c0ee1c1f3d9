"""Which compositions there are: what the rules of composition allow, nothing else, and nothing that is published."""

import functools
import itertools
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tuner.composing import STAGES, ByScore, Cuts, InSegments, Planted, Share, grammar
from tuner.fake_bench import FakeBench

from vidsieve import Budget, Keep, Scores, Segments, Stage, VideoTokens, hookimpl
from vidsieve.framework.composition import composition_faults
from vidsieve.framework.policy.file import load_policy, read_policy
from vidsieve.framework.registry import Registry, default
from vidsieve.tuner.space.arrangement import composed
from vidsieve.tuner.space.composed_space import policy_of
from vidsieve.tuner.space.grammar import PARTS, Grammar, Skeleton
from vidsieve.tuner.space.policy_catalog import grammar_of

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@functools.cache
def everything() -> Grammar:
    """The grammar of all built-in stages."""
    return Grammar(default().stages, published=[load_policy(name) for name in sorted(default().policies)])


def _walk(grammar: Grammar, draws: Sequence[int]) -> Skeleton:
    """Choose part by part, each by one of `draws`."""
    chosen: Skeleton = ()
    for number in draws:
        choices = grammar.choices(chosen)
        chosen = (*chosen, choices[number % len(choices)])
    return chosen


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 100), min_size=len(PARTS), max_size=len(PARTS)))
def test_every_composition_loads_and_keeps_its_hash_through_yaml(draws: list[int]) -> None:
    policy = policy_of(everything(), _walk(everything(), draws))
    again = read_policy(policy.to_yaml(), "composed.yaml")
    assert again.hash == policy.hash
    assert again.name == policy.name
    assert NAME.fullmatch(policy.name)
    assert all(bound.use in policy.summary for bound in policy.stages)


def test_there_are_thousands_of_compositions_and_their_number_is_known_without_making_them() -> None:
    assert everything().count() > 5000
    assert few().count() == len(list(few().skeletons())) == len(set(few().skeletons()))


def test_compositions_come_in_the_same_order_every_time() -> None:
    again = Grammar(dict(reversed(STAGES.items())), published=grammar(published=[])._published, decode=False)
    first = list(itertools.islice(grammar(published=[]).skeletons(), 20))
    assert list(itertools.islice(again.skeletons(), 20)) == first


def _brute_force(stages: dict[str, type[Stage]]) -> set[frozenset[str]]:
    """Try every set of stages, at most one a part, in every order."""
    found = set()
    by_part = [
        [None, *(name for name, stage in stages.items() if set(part.hooks) & set(stage.hooks()))] for part in PARTS
    ]
    for chosen in itertools.product(*by_part):
        names = sorted({name for name in chosen if name is not None})
        filled = [name for name in chosen if name is not None]
        whole = all(filled.count(n) == sum(bool(set(p.hooks) & set(stages[n].hooks())) for p in PARTS) for n in names)
        orders = itertools.permutations(names) if names and whole else ()
        if any(not composition_faults(composed([(n, stages[n].build({})) for n in order])) for order in orders):
            found.add(frozenset(names))
    return found


@functools.cache
def few() -> Grammar:
    """The grammar of the stages made for these tests."""
    return grammar()


def _as_sets(grammar: Grammar) -> set[frozenset[str]]:
    return {frozenset(name for name in each if name is not None) for each in grammar.skeletons()}


@pytest.mark.parametrize(
    "names",
    [
        ["fake.score", "test.cuts", "test.share", "test.top", "test.in-segments"],
        ["planted.score", "test.skip", "test.share", "test.inside"],
        ["planted.score", "test.skip", "fake.top", "test.entries"],
    ],
)
def test_the_grammar_holds_just_what_the_rules_of_composition_allow(names: list[str]) -> None:
    stages = {name: STAGES[name] for name in names}
    assert _as_sets(Grammar(stages)) == _brute_force(stages) != set()


class ShareByScore(Stage):
    """Shares by what was scored."""

    reads = ("scores",)

    @hookimpl
    def budget_frames(self, tokens: VideoTokens) -> Budget:
        return Budget(torch.ones(tokens.keep.shape[0]))


class CutsAndKeeps(Stage):
    """Does two parts' work."""

    reads = ("scores", "segments")

    @hookimpl
    def segment_frames(self, tokens: VideoTokens) -> Segments:
        return Segments(torch.zeros(tokens.keep.shape[0], dtype=torch.long))

    @hookimpl
    def select_tokens(self, tokens: VideoTokens) -> Keep:
        return Keep(torch.ones_like(tokens.keep))


class ScoresBudget(Stage):
    """Scores by what the budget says."""

    reads = ("budget",)

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(torch.ones(tokens.keep.shape))


def test_a_reader_stands_behind_its_writer_whatever_house_order_says() -> None:
    odd = {"share": ShareByScore, "score": Planted, "top": ByScore, "by-budget": ScoresBudget}
    made = Grammar(odd)
    orders = {tuple(name for name, _ in made.in_order(skeleton)) for skeleton in made.skeletons()}
    assert ("score", "share", "top") in orders
    assert not any("by-budget" in order for order in orders)  # its only budget reads scores
    assert _as_sets(made) == _brute_force(odd)


def test_a_stage_with_the_hooks_of_two_parts_fills_both() -> None:
    stages = {"both": CutsAndKeeps, "cuts": Cuts, "score": Planted, "in-segments": InSegments, "top": ByScore}
    made = Grammar(stages)
    assert _as_sets(made) == _brute_force(stages)
    with_both = [each for each in made.skeletons() if "both" in each]
    assert with_both
    assert all("cuts" not in each for each in with_both)


def test_what_is_published_is_no_composition_whatever_its_settings() -> None:
    published = {frozenset(b.use for b in load_policy(name).stages) for name in default().policies}
    assert frozenset({"evs.novelty", "evs.select"}) in published
    assert not published & _as_sets(everything())


def test_a_published_policy_less_a_stage_it_can_do_without_counts_as_published() -> None:
    bench = FakeBench(lambda policy: 0.9)
    bench.offers = frozenset({"question", "token_grid", "timestamps_s", "vision_attention"})
    made = _as_sets(grammar_of(default(), bench, "ttft"))
    assert frozenset({"vidcom2.token-score", "top-k"}) not in made
    assert frozenset({"dycoke.temporal-merge"}) not in made
    assert frozenset({"uniform-budget", "vidcom2.token-score", "top-k"}) in made


class NeedsGrid(Planted):
    """Scores by place."""

    def needs(self) -> frozenset[str]:
        return frozenset({"token_grid"})


class NeedsNonsense(Planted):
    """Asks for what nobody has."""

    def needs(self) -> frozenset[str]:
        return frozenset({"tokn_grid"})


class Raises(Planted):
    """Raises when asked."""

    def needs(self) -> frozenset[str]:
        raise KeyError("mine")


class Required(Planted):
    """Has a setting without a default."""

    power: float


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        (NeedsGrid, "needs token_grid"),
        (NeedsNonsense, "Did you mean 'token_grid'"),
        (Raises, "raised KeyError"),
        (Required, "settings without a default: power"),
    ],
)
def test_a_stage_that_cannot_take_part_is_left_out_with_the_reason(stage: type[Stage], why: str) -> None:
    made = grammar({**STAGES, "odd": stage}, offers=frozenset())
    assert why in made.left_out["odd"]
    assert made.count() == few().count()
    assert why in made.sentence()


def test_where_the_adapter_does_not_act_no_stage_is_tried() -> None:
    made = grammar(hooks=["select_tokens", "score_tokens", "budget_frames"])
    assert set(made.left_out) >= {"test.skip", "test.inside", "test.cuts"}
    assert "acts in reduce_frames" in made.left_out["test.skip"]


def test_decode_stages_take_part_only_where_decode_is_measured() -> None:
    assert not any("test.entries" in each for each in few().skeletons())
    assert any("test.entries" in each for each in grammar(decode=True).skeletons())


def test_a_composition_names_the_papers_of_its_parts_and_what_must_be_installed() -> None:
    made = grammar(packages={"planted.score": "planted"})
    skeleton = made.skeleton(["planted.score", "test.share", "test.top"])
    assert skeleton is not None
    policy = policy_of(made, skeleton)
    assert policy.name == "test-share-and-planted-score-and-test-top"
    assert policy.sources == ("arXiv:2601.00001", "arXiv:2601.00002")
    assert policy.requires == ("planted",)


def test_built_in_stages_name_the_paper_of_their_method() -> None:
    skeleton = everything().skeleton(["pixel-change", "vidcom2.frame-budget", "fastv.prune"])
    assert skeleton is not None
    assert policy_of(everything(), skeleton).sources == ("arXiv:2411.05222", "arXiv:2505.14454", "arXiv:2403.06764")


def test_two_compositions_never_share_a_name() -> None:
    confusing = {"a.b": Planted, "a-b": Planted, "x-and-y": ByScore, "x": ByScore, "y": Share}
    made = Grammar(confusing)
    names = [policy_of(made, skeleton).name for skeleton in made.skeletons()]
    assert len(set(names)) == len(names)
    assert all(NAME.fullmatch(name) for name in names)


def test_a_stranger_s_stage_takes_part_in_the_grammar() -> None:
    registry = Registry()
    registry.register("stranger.score", Planted)
    made = Grammar(registry.stages, decode=False)
    name = made.candidates([part.name for part in PARTS].index("scorer"))
    assert {"stranger.score", "evs.novelty"} <= set(name)
    chosen = made.skeleton(["similarity-cuts", "stranger.score", "fastvid.merge"])
    assert chosen is not None
    assert [use for use, _ in made.in_order(chosen)] == ["similarity-cuts", "stranger.score", "fastvid.merge"]
