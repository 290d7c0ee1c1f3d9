"""A search whose data has lost files since goes on, when told so, on what is left of its very own splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuner.fake_bench import FakeBench, FakeTask
from tuner.searching import Recorder, quality, search

from vidsieve.framework.errors import MediaError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example
from vidsieve.tuner.search.trial_loop import SearchFailedError
from vidsieve.tuner.study.store import StudyMismatchError

VIDEOS = [(f"video-{number}", str((number * 37 % 300 + 0.5) / 300)) for number in range(300)]


class Folder(FakeTask):
    """Videos shared out by their share of all, so that one taken away moves others across the borders of splits."""

    def __init__(self, gone: Sequence[str] = ()) -> None:
        super().__init__()
        left = [video for video in VIDEOS if video[0] not in gone]
        # ids are numbers of lines: they shift
        self.all = [Example(id=f"line-{i}", group=g, question=q, answer="a") for i, (g, q) in enumerate(left)]

    def examples(self, split: str, count: int, *, seed: int = 0) -> Sequence[Example]:
        ends = {"heldout": (0.0, 0.5), "rerank": (0.5, 0.7), "search": (0.7, 1.0)}[split]
        first, last = (round(end * len(self.all)) for end in ends)
        return self.all[first:last][:count]

    def describe(self) -> dict[str, str]:
        return {"name": "folder", "sha256": str(len(self.all)), "videos": str(len(self.all))}


# one of the search examples, of the re-ranked ones, of the held-out ones
GONE = ("video-250", "video-160", "video-4")
OPTIONS: dict[str, Any] = {"trials": 8, "examples": 60, "heldout_examples": 120, "rerank_examples": 50, "patience": 100}


def test_a_study_goes_on_without_the_files_that_were_taken_away_when_told_so(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    first = search(FakeBench(quality), task=Folder(), storage=path, **OPTIONS | {"trials": 5})
    with pytest.raises(StudyMismatchError, match=r"`skip_bad`.*1 of 60 search examples gone, .*1 of 120 heldout"):
        search(FakeBench(quality), task=Folder(GONE), storage=path, **OPTIONS)
    with pytest.raises(StudyMismatchError, match=r"`skip_bad`.*\(all of them\)"):
        search(FakeBench(quality), task=Folder(["video-299"]), storage=path, **OPTIONS)
    bench, task, listener = FakeBench(quality), Folder(GONE), Recorder()
    result = search(bench, listener, task=task, storage=path, skip_bad=True, **OPTIONS)
    assert [event.number for event in listener.trials] == [6, 7, 8]
    assert result.search["trials_resumed"] == 5
    assert any("lost files" in text and "1 of 60 search examples" in text for text in result.warnings)
    # every split is what it was, less what is gone: nothing that chose may judge
    before = {e.group for e in Folder().examples("heldout", 120)}
    assert result.accuracy is not None and first.accuracy is not None
    assert result.accuracy.n == first.accuracy.n - 1 == 119
    left = [example for example in task.all if example.group in before]
    assert [example.id for example in left] == result.policy.provenance["heldout_ids"]
    assert result.accuracy.baseline.value == pytest.approx(np.mean([float(e.question) < 0.9 for e in left]))
    # the uncompressed model's outcomes were kept, not made again
    assert "" not in {name for name, _ in bench.scored}


def test_earlier_trials_are_rated_on_what_is_left_again_and_again(tmp_path: Path) -> None:
    path, options = tmp_path / "study.db", OPTIONS | {"trials": 3}
    gone = tuple(f"video-{number}" for number in range(240, 255))
    first = search(FakeBench(quality), task=Folder(), storage=path, **options)
    for taken, left in ((gone, 45), ((*gone, "video-260"), 44)):
        result = search(FakeBench(quality), task=Folder(taken), storage=path, skip_bad=True, **options)
        whole = [event for event in result.trials if event.verdict in ("new best", "feasible")]
        assert whole
        assert {event.scored for event in whole} == {left}
        assert [e.number for e in whole] == [e.number for e in first.trials if e.verdict in ("new best", "feasible")]
        questions = [e.question for e in Folder().examples("search", 60) if e.group not in taken]
        for event in whole:
            assert event.score is not None and event.change_points is not None
            full = np.mean([1 / (1 + np.exp(-12 * (0.9 - float(question)))) for question in questions])
            assert event.score - full == pytest.approx(event.change_points / 100, abs=1e-9)


@pytest.mark.parametrize("change", [{"seed": 1}, {"examples": 50}, {"latency_ms": 250.0}])
def test_skip_bad_excuses_nothing_but_missing_files(tmp_path: Path, change: dict[str, Any]) -> None:
    path, options = tmp_path / "study.db", OPTIONS | {"trials": 1}
    search(FakeBench(quality), task=Folder(), storage=path, **options)
    with pytest.raises(StudyMismatchError) as caught:
        search(FakeBench(quality), task=Folder(GONE), storage=path, skip_bad=True, **options | change)
    assert "give `skip_bad`" not in str(caught.value)


def test_one_bad_clip_ends_the_search_with_the_best_so_far_and_it_goes_on_without_it(tmp_path: Path) -> None:
    class Truncated(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            for outcome in super().score(policy, examples):
                if outcome.group == "video-4":
                    raise MediaError("video-4: ends after 3 of 16 frames.")
                yield outcome

    path, listener = tmp_path / "study.db", Recorder()
    with pytest.raises(SearchFailedError, match=r"(?s)best so far is good.*video-4: ends.*`skip_bad`") as caught:
        search(Truncated(quality), listener, task=Folder(), storage=path, **OPTIONS)
    assert not caught.value.result.confirmed
    assert caught.value.result.policy.name == "good"
    assert listener.ends == [("interrupted", caught.value.result)]
    assert any("video-4" in text for text in caught.value.result.warnings)
    assert len(listener.trials) == 8
    result = search(FakeBench(quality), task=Folder(("video-4",)), storage=path, skip_bad=True, **OPTIONS)
    assert result.confirmed
    assert result.search["trials_resumed"] == 8
