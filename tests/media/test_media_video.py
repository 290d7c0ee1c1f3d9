"""Reading videos: the right frames, from odd files too, and clear refusals."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from media.films import HEIGHT, WIDTH, film, numbered, numbers, recording

from vidsieve.framework.errors import MediaError, UsageError
from vidsieve.media import list_videos, read_video
from vidsieve.media.frame_table import sample_by_count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return film(folder / "plain.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.mov"])
@pytest.mark.parametrize("count", [1, 7, 16, 60])
def test_frames_by_count_are_evenly_spread_in_every_container(folder: Path, name: str, count: int) -> None:
    path = folder / name
    if not path.exists():
        film(path, b_frames=0 if name.endswith("avi") else 2)
    clip = read_video(path, frames=count)
    wanted = [k * 60 // count for k in range(count)]
    assert clip.frame_index.tolist() == wanted
    assert torch.equal(clip.frames, numbered(60)[wanted])
    assert torch.allclose(clip.timestamps_s, torch.tensor(wanted) / 25, atol=2e-3)
    assert clip.fps == pytest.approx(25)
    assert clip.duration_s == pytest.approx(2.4, abs=0.01)
    assert clip.source_frames == 60


@pytest.mark.parametrize("gop", [1, 2, 5, 300])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_leaping_to_keyframes_gives_the_frames_of_decoding_from_the_start(
    tmp_path: Path, gop: int, b_frames: int
) -> None:
    path = film(tmp_path / "gop.mp4", 40, keyframe_every=gop, b_frames=b_frames)
    assert numbers(read_video(path, frames=9).frames) == [k * 40 // 9 for k in range(9)]
    assert numbers(read_video(path, frames=40).frames) == list(range(40))


def test_sixteen_frames_unless_asked_otherwise(plain: Path) -> None:
    assert numbers(read_video(plain).frames) == [k * 60 // 16 for k in range(16)]


def test_a_video_with_fewer_frames_gives_all_it_has(tmp_path: Path) -> None:
    assert numbers(read_video(film(tmp_path / "short.mp4", 5), frames=16).frames) == [0, 1, 2, 3, 4]


def test_a_video_of_one_frame_works(tmp_path: Path) -> None:
    clip = read_video(film(tmp_path / "one.mp4", 1))
    assert numbers(clip.frames) == [0]
    assert clip.timestamps_s.tolist() == [0.0]
    assert clip.duration_s == pytest.approx(0.04)


def test_frames_by_fps_match_transformers_counting_at_a_constant_rate(plain: Path) -> None:
    for fps in (1, 2.5, 7, 25):
        count = int(60 / 25 * fps)
        assert numbers(read_video(plain, fps=fps).frames) == [k * 60 // count for k in range(count)]


def test_more_fps_than_the_source_has_gives_every_frame_once(plain: Path) -> None:
    assert numbers(read_video(plain, fps=1000).frames) == list(range(60))


def test_max_frames_caps_both_ways_of_asking(plain: Path) -> None:
    assert len(read_video(plain, fps=25, max_frames=6).frames) == 6
    assert len(read_video(plain, frames=30, max_frames=6).frames) == 6


def test_at_a_variable_rate_fps_means_time_and_frames_means_count(tmp_path: Path) -> None:
    times = [*range(0, 100, 2), *range(100, 300, 20)]  # 1 s at 50 fps, then 2 s at 5 fps
    path = film(tmp_path / "variable.mkv", 60, pts=times)
    assert numbers(read_video(path, frames=6).frames) == [0, 10, 20, 30, 40, 50]
    clip = read_video(path, fps=2)
    assert clip.timestamps_s.tolist() == pytest.approx([0.0, 0.56, 1.0, 1.6, 2.2], abs=1e-3)
    assert numbers(clip.frames) == [0, 28, 50, 53, 56]  # on screen at k * 2.84 s / 5


def test_timestamps_begin_at_the_first_frame(tmp_path: Path) -> None:
    path = film(tmp_path / "late.mkv", 10, pts=[500 + 4 * i for i in range(10)])
    clip = read_video(path, frames=5)
    assert clip.timestamps_s.tolist() == pytest.approx([0, 0.08, 0.16, 0.24, 0.32], abs=1e-3)


def test_a_stream_without_timestamps_is_counted_by_decoding(tmp_path: Path) -> None:
    clip = read_video(film(tmp_path / "raw.h264", 20), frames=4)
    assert numbers(clip.frames) == [0, 5, 10, 15]
    assert clip.source_frames == 20


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_in_the_file_is_applied(tmp_path: Path, rotation: int, turns: int) -> None:
    clip = read_video(film(tmp_path / "turned.mp4", 3, rotation=rotation), frames=3)
    assert torch.equal(clip.frames, torch.rot90(numbered(3), turns, dims=(-2, -1)))


def test_sound_beside_the_pictures_does_no_harm(tmp_path: Path) -> None:
    assert numbers(read_video(film(tmp_path / "loud.mp4", 30, sound=True), frames=3).frames) == [0, 10, 20]


def test_the_same_file_gives_the_same_clip(plain: Path) -> None:
    assert torch.equal(read_video(plain, frames=11).frames, read_video(plain, frames=11).frames)


def test_ordinary_h264_comes_back_close(tmp_path: Path) -> None:
    path = film(tmp_path / "yuv.mp4", 30, codec="libx264", pix_fmt="yuv420p")
    clip = read_video(path, frames=30)
    assert clip.frames.shape == (30, 3, HEIGHT, WIDTH)
    assert (clip.frames.float() - numbered(30).float()).abs().mean() < 6


def test_only_chosen_frames_are_turned_into_pictures(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vidsieve.media.video as video

    upright, made = video._upright, []
    monkeypatch.setattr(video, "_upright", lambda frame: made.append(frame.pts) or upright(frame))
    read_video(plain, frames=4)
    assert len(made) == 4


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi"])
def test_a_file_cut_short_is_refused_with_what_was_there(tmp_path: Path, name: str) -> None:
    start = {"movflags": "faststart"} if name.endswith("mp4") else {}
    whole = film(tmp_path / f"whole-{name}", 200, b_frames=0, container_options=start).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(MediaError, match=r"cut.*(promises.*ends after \d+ frames|not a readable video)"):
        read_video(tmp_path / name)


def test_a_file_cut_before_its_index_is_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "noindex.mp4").write_bytes(plain.read_bytes()[:500])
    with pytest.raises(MediaError, match="not a readable video"):
        read_video(tmp_path / "noindex.mp4")


@pytest.mark.parametrize("seed", range(12))
def test_damage_inside_a_file_gives_a_clip_or_a_clear_refusal(plain: Path, tmp_path: Path, seed: int) -> None:
    content, rng = bytearray(plain.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, len(content), 30):
        content[place] ^= int(rng.integers(1, 256))
    (tmp_path / "hurt.mp4").write_bytes(content)
    with suppress(MediaError):  # any other exception fails the test
        assert 1 <= len(read_video(tmp_path / "hurt.mp4", frames=8).frames) <= 8


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"gone\.mp4: no such file"):
        read_video(tmp_path / "gone.mp4")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="this is a folder"):
        read_video(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 100, bytes(4096)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fake.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"fake\.mp4: not a readable video"):
        read_video(tmp_path / "fake.mp4")


def test_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no video stream, only audio"):
        read_video(recording(tmp_path / "sound.mp4"))


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    path = film(tmp_path / "none.mkv", 0)
    with pytest.raises(MediaError, match=r"none\.mkv: (no frame|not a readable)"):
        read_video(path)


@pytest.mark.parametrize(
    "request_", [{"frames": 4, "fps": 1.0}, {"frames": 0}, {"fps": -1.0}, {"fps": float("nan")}, {"max_frames": 0}]
)
def test_a_request_that_contradicts_itself_is_a_usage_error(plain: Path, request_: dict) -> None:
    with pytest.raises(UsageError, match="read_video"):
        read_video(plain, **request_)


def test_videos_of_a_folder_are_listed_by_name_without_hidden_or_other_files(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.webm", ".c.mp4", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.mp4").mkdir()
    (tmp_path / "d.mp4" / "e.mov").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "f.mp4").touch()
    assert [p.name for p in list_videos(tmp_path)] == ["a.webm", "b.MP4", "e.mov"]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no video in this folder"):
        list_videos(tmp_path)
    with pytest.raises(MediaError, match="not there"):
        list_videos(tmp_path / "gone")


@given(st.integers(1, 5000), st.integers(1, 300))
def test_sampling_by_count_is_even_for_any_length(total: int, count: int) -> None:
    index = sample_by_count(total, count)
    assert len(index) == min(total, count)
    assert index[0] == 0
    assert index[-1] < total
    steps = np.diff(index)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
