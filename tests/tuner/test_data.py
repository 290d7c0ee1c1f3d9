"""The three kinds of examples stay apart, and faulty data is told before anything runs."""

from collections.abc import Sequence

import pytest
from tuner.fake_bench import FakeTask

from vidsieve.framework.errors import DataError
from vidsieve.framework.task import Example
from vidsieve.tuner.examples import choose_examples, ids_hash
from vidsieve.tuner.request import TuneRequest

REQUEST = TuneRequest(latency_ms=200, examples=20, heldout_examples=30, rerank_examples=24)


class Changed(FakeTask):
    """A task whose `split` examples are replaced."""

    def __init__(self, split: str, examples: Sequence[Example]) -> None:
        super().__init__()
        self.split, self.replaced = split, examples

    def examples(self, split: str, count: int, *, seed: int = 0) -> Sequence[Example]:
        return self.replaced if split == self.split else super().examples(split, count, seed=seed)


def example(name: str, group: str = "a video", answer: str | None = "a") -> Example:
    return Example(id=name, group=group, question="0.5", answer=answer)


def test_search_rerank_and_heldout_share_no_video_and_each_has_its_count() -> None:
    data = choose_examples(FakeTask(), REQUEST)
    parts = [data.search, data.rerank, data.heldout]
    assert [len(part) for part in parts] == [20, 24, 30]
    groups = [{e.group for e in part} for part in parts]
    assert len(groups[0] | groups[1] | groups[2]) == sum(map(len, groups))


def test_provenance_tells_the_rerank_examples_by_count_and_hash() -> None:
    data = choose_examples(FakeTask(), REQUEST)
    told = data.to_dict()["splits"]
    assert list(told) == ["search", "rerank", "heldout"]
    assert told["rerank"] == {"examples": 24, "videos": 12, "ids_sha256": ids_hash([e.id for e in data.rerank])}


def test_too_few_videos_for_a_rerank_leave_it_empty() -> None:
    assert choose_examples(Changed("rerank", []), REQUEST).rerank == ()
    assert choose_examples(Changed("rerank", [example("one")]), REQUEST).rerank == ()


@pytest.mark.parametrize(("split", "named"), [("search", "search examples: 1"), ("heldout", "heldout examples: 1")])
def test_one_example_neither_chooses_nor_judges(split: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        choose_examples(Changed(split, [example("one")]), REQUEST)


@pytest.mark.parametrize("other", ["search", "heldout"])
def test_a_video_in_the_rerank_and_in_another_split_is_refused(other: str) -> None:
    taken = [example("x", f"{other}-video-0"), example("y")]
    with pytest.raises(DataError, match=f"video '{other}-video-0'"):
        choose_examples(Changed("rerank", taken), REQUEST)


def test_an_id_in_two_splits_is_refused_even_with_videos_apart() -> None:
    with pytest.raises(DataError, match=r"id 'search-3' is in the search and in the re-rank"):
        choose_examples(Changed("rerank", [example("search-3"), example("y")]), REQUEST)


def test_rerank_examples_are_held_to_unique_ids_and_answers_too() -> None:
    with pytest.raises(DataError, match=r"rerank examples: id 'x' stands more than once"):
        choose_examples(Changed("rerank", [example("x"), example("x")]), REQUEST)
    with pytest.raises(DataError, match=r"rerank examples: 1 have no answer"):
        choose_examples(Changed("rerank", [example("x"), example("y", answer=None)]), REQUEST)
