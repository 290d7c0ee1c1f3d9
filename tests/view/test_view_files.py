"""The page, the picture and the film: well-formed, self-contained, bounded, and hostile text stays text."""

import html
import io
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from adapters.test_qwen2_vl import TestQwen2VL as Qwen2VL
from framework.kit import Best, Even, Norm, policy, ramp
from PIL import Image
from report.reading import Reading

from vidsieve import Clip, load_policy, show
from vidsieve.framework.errors import UsageError
from vidsieve.framework.report import Report
from vidsieve.testing.adapter_decoder_kit import TopKV
from vidsieve.testing.adapter_kit import Row, policy_of, run
from vidsieve.view.shown_frames import chosen_units, unit_frames
from vidsieve.view.still import still_png

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x07"


def reports(units: int = 5, tokens: int = 12) -> list[Report]:
    torch.manual_seed(0)
    some = policy(Even(), Norm(), Best(), ratio=0.4).plan(ramp(units, tokens)).report
    merged = load_policy("tome", retention_ratio=0.4).plan(torch.randn(units, tokens, 32)).report
    return [some, merged]


def frames(count: int = 5, height: int = 60, width: int = 80) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def loaded(page: str) -> list[str]:
    """Everything a browser would fetch for a page: attributes and style sheets."""
    return Reading(page).loads + re.findall(r"url\(([^)]*)\)|@import", page)


def test_the_page_balances_and_loads_nothing_from_elsewhere() -> None:
    page = show(reports(), frames(), question="What moves?", answers=["a disc", "a disc"], title="clip.mp4").html()
    read = Reading(page)
    assert all(found.startswith("data:image/") for found in loaded(page))
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[\w+/=]*", "", page))
    assert not read.handlers
    assert "default-src 'none'" in page
    for words in ("clip.mp4", "What moves?", "a disc", "24 of 60 visual tokens in the prompt (40.0%)", "merged into"):
        assert words in read.text
    # as many pictures as frames, as many overlays as frames and policies
    assert page.count("data:image/jpeg;base64,") == 5
    assert page.count("{ background-image: url(data:image/png;base64,") == 10


def test_every_frame_is_told_to_those_who_do_not_see_it() -> None:
    page = show(reports()[0], frames()).html()
    told = re.findall(r'role="img" aria-label="frame (\d), test: ([^"]*)"', page)
    assert [number for number, _ in told] == ["1", "2", "3", "4", "5"]
    assert told[-1][1] == "4 of 12 kept, 8 dropped"
    for part in ('type="range"', 'aria-label="Earlier frame"', 'aria-label="Later frame"', 'aria-live="polite"'):
        assert part in page


def test_hostile_text_stays_text() -> None:
    page = show(reports(), frames(), title=HOSTILE, question=HOSTILE, answers=[HOSTILE] * 2, facts=[HOSTILE]).html()
    read = Reading(page)
    assert read.tags.count("script") == 1
    assert not read.handlers
    assert "\x07" not in page and "\u202e" not in page
    assert "alert(1)" in read.text


def test_words_of_the_model_stay_text() -> None:
    kit = Qwen2VL()
    model = kit.build_model()
    _, report = run(model, policy_of(TopKV()), kit.make_inputs(model, Row()))
    seen = show(report, words=[["<u>one", "<u>two", "<u>three", "<u>four"]])
    read = Reading(seen.html())
    assert "u" not in read.tags
    # the first token comes out of the prompt: no decode step wrote it
    assert "<u>two" in read.text and "<u>one" not in read.text
    assert "it acts in decode alone" in seen.sentences[0]
    assert Image.open(io.BytesIO(still_png(seen))).size[0] > 500


def test_what_a_policy_without_effect_shows_is_said() -> None:
    report = load_policy("none").plan(torch.randn(3, 4, 8)).report
    seen = show(report, frames(3))
    assert seen.sentences == [
        "policy 'none': keeps every visual token of the prompt, so no token is dimmed, and there is nothing to see of "
        "it in the frames."
    ]
    assert seen.sentences[0] in html.unescape(Reading(seen.html()).text)


def test_in_a_notebook_a_report_and_a_view_show_the_page_in_a_frame_of_its_own() -> None:
    (report, _) = reports()
    for given in (report, report.show(), report.show(frames())):
        shown = given._repr_html_()
        assert Reading(shown).tags == ["iframe"]
        inner = re.search(r'srcdoc="([^"]*)"', shown)
        assert inner is not None
        assert Reading(html.unescape(inner[1])).text.startswith("test keeps 40.0% of 60 visual tokens")
    assert Report(policy_name="x", policy_hash="y", requested_ratio=None)._repr_html_() is None


def test_a_long_video_gives_a_page_of_bounded_size_that_says_so() -> None:
    report = policy(Norm(), Best(), ratio=0.1).plan(ramp(200, 16)).report
    page = show(report, frames(200, 240, 320)).html()
    assert "96 of 200 frames are shown" in Reading(page).text
    assert len(page) < 5_000_000
    shown = chosen_units(200)
    assert (shown[0], shown[-1], len(set(shown.tolist()))) == (0, 199, 96)


@pytest.mark.parametrize(("units", "count"), [(4, 8), (4, 7), (4, 4), (1, 3)])
def test_the_first_frame_of_each_unit_is_shown(units: int, count: int) -> None:
    made = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 6)
    shown = unit_frames(made, units)
    each = -(-count // units)
    assert shown is not None
    assert shown[:, 0, 0, 0].tolist() == list(range(0, count, each))
    same = unit_frames(Clip.from_frames(made.contiguous(), fps=2), units)
    assert same is not None and np.array_equal(shown, same)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(5, 3, 8, 8), "uint8"),
        (torch.zeros(5, 8, 8, dtype=torch.uint8), "uint8 of"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "uint8 of"),
        (torch.zeros(7, 3, 8, 8, dtype=torch.uint8), "5 units .* which 7 frames do not make"),
        ("clip.mp4", "uint8 of"),
    ],
    ids=["floats", "no colours", "none", "too many", "a name"],
)
def test_frames_that_do_not_fit_are_refused_in_words(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=f"frames: .*{words}"):
        show(reports()[0], given)


def test_reports_of_different_videos_are_refused() -> None:
    with pytest.raises(UsageError, match=r"different videos \(4 x 12, 5 x 12 visual tokens\)"):
        show([reports()[0], reports(4)[0]])
    with pytest.raises(UsageError, match="at least one report"):
        show([])


def test_the_picture_and_the_film_hold_every_policy(tmp_path: Path) -> None:
    seen = show(reports(), Clip.from_frames(frames(), fps=2), title="a clip")
    with Image.open(seen.write(tmp_path / "a.png")) as picture:
        assert picture.format == "PNG"
        # two policies are higher than one
        assert picture.size[1] > Image.open(io.BytesIO(still_png(show(reports()[0], frames())))).size[1]
    with av.open(str(seen.write(tmp_path / "a.mp4"))) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 2
    assert len(shown) == 5
    assert np.abs(shown[0].astype(int) - shown[1]).mean() > 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a.png"]


def test_a_file_is_not_replaced_unasked_and_other_suffixes_are_refused(tmp_path: Path) -> None:
    seen = show(reports()[0])
    path = seen.write(tmp_path / "a.html")
    with pytest.raises(UsageError, match="exists already"):
        seen.write(path)
    assert seen.write(path, force=True) == path
    for name in ("a.jpg", "a", "a.html.gz"):
        with pytest.raises(UsageError, match=r"must end in \.html, \.png or \.mp4, got"):
            seen.write(tmp_path / name)
    with pytest.raises(UsageError, match="does not exist"):
        seen.write(tmp_path / "nowhere" / "a.html")
