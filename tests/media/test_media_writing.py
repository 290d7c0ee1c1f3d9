"""Writing videos: what comes back, and that a failure leaves nothing behind."""

from pathlib import Path

import pytest
import torch

from vidsieve.framework.errors import MediaError
from vidsieve.media import read_video, write_video


def noise(count: int = 6, height: int = 32, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 47)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_lossless_keeps_every_value(tmp_path: Path, height: int, width: int, suffix: str) -> None:
    frames = noise(6, height, width)
    path = write_video(tmp_path / f"exact{suffix}", frames, 12.5, lossless=True)
    clip = read_video(path, frames=6)
    assert torch.equal(clip.frames, frames)
    assert clip.fps == pytest.approx(12.5)


def test_a_lower_crf_is_closer(tmp_path: Path) -> None:
    frames = noise()
    errors = [
        (read_video(write_video(tmp_path / f"{crf}.mp4", frames, 8, crf=crf), frames=6).frames.float() - frames)
        .abs()
        .mean()
        for crf in (1, 40)
    ]
    assert errors[0] < errors[1]


def test_odd_sides_are_refused_where_the_format_cannot_hold_them(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="even sides, got 47 x 31"):
        write_video(tmp_path / "odd.mp4", noise(2, 31, 47), 8)


@pytest.mark.parametrize(("count", "fps"), [(0, 8.0), (2, 0.0), (2, float("nan"))])
def test_nothing_to_show_is_refused(tmp_path: Path, count: int, fps: float) -> None:
    with pytest.raises(MediaError, match="at least one frame and fps above 0"):
        write_video(tmp_path / "none.mp4", noise(count), fps)


@pytest.mark.parametrize("bad", [{"codec": "no-such-codec"}, {"pix_fmt": "no-such-format"}])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, bad: dict) -> None:
    path = tmp_path / "kept.mp4"
    path.write_bytes(b"old")
    with pytest.raises(MediaError, match=r"kept\.mp4: could not be written"):
        write_video(path, noise(), 8, **bad)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.mp4"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_or_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone" / "a.mp4", tmp_path / "a.nothing"):
        with pytest.raises(MediaError, match="could not be written"):
            write_video(path, noise(), 8)
