"""Videos: pixels and times of real and generated files, cut off, turned, of variable rate, damaged."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from stages.base import UnitError
from stages.media.video import VideoCache, open_video, sample_frames, uniform_indices
from stages.shapes.clips import write_mp4


def numbered(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Frames that carry their number as the width of a white bar, with a red corner at the top left."""
    frames = []
    for number in range(count):
        image = np.zeros((height, width, 3), np.uint8)
        image[height // 2 :, : 2 * number + 2] = 255
        image[:12, :12] = (250, 0, 0)
        frames.append(image)
    return frames


def number_of(image: np.ndarray) -> int:
    return round((image[-8:].mean((0, 2)) > 127).sum() / 2) - 1


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(path, numbered(40), 24, keyframe_every=10)
    return path


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_frames_come_by_index_in_the_order_asked_for(film: Path, backend: str) -> None:
    video = open_video(str(film), backend=backend)
    assert (len(video), video.width, video.height, video.fps, video.note) == (40, 96, 64, 24.0, None)
    wanted = [39, 0, 7, 7, 21, 20, 3]
    assert [number_of(frame) for frame in video.frames(wanted)] == wanted
    assert np.allclose(video.times_s, np.arange(40) / 24)
    with pytest.raises(IndexError):
        video.frames([40])
    video.close()


@pytest.mark.parametrize("name", ["dog.mp4", "coffee.mp4"])
def test_both_back_ends_give_the_same_pixels_of_real_video(shared_data: Path, name: str) -> None:
    one, two = (open_video(str(shared_data / "videos" / name), backend=b) for b in ("decord", "pyav"))
    assert len(one) == len(two) > 280
    assert np.allclose(one.times_s, two.times_s)
    assert one.fps == pytest.approx(30000 / 1001)
    indices = [0, 5, 90, 130]
    assert np.array_equal(one.frames(indices), two.frames(indices))


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path, backend: str) -> None:
    stamps = [0, 1, 2, 10, 11, 30, 31, 32, 60, 100]
    write_mp4(tmp_path / "vfr.mp4", numbered(10), 24, pts=stamps)
    video = open_video(str(tmp_path / "vfr.mp4"), backend=backend)
    assert np.allclose(video.times_s, np.array(stamps) / 24)
    assert [number_of(f) for f in video.frames(range(10))] == list(range(10))
    assert video.nearest(1.3) == 6


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize(("rotation", "corner"), [(90, (-5, 5)), (180, (-5, -5)), (-90, (5, -5))])
def test_rotated_video_is_upright(tmp_path: Path, backend: str, rotation: int, corner: tuple[int, int]) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(rotation)
        for number, image in enumerate(numbered(6)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = open_video(str(path), backend=backend)
    expected = (96, 64) if rotation == 180 else (64, 96)
    assert (video.width, video.height) == expected
    assert video.frames([2])[0][corner].tolist() == pytest.approx([250, 0, 0], abs=12)


def test_a_cut_off_file_gives_what_can_be_read_and_says_so(shared_data: Path, tmp_path: Path) -> None:
    whole = (shared_data / "videos" / "dog.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) // 4])
    video = open_video(str(path))
    assert 30 < len(video) < 200
    assert video.note == f"cut off: {len(video)} of 289 frames can be read"
    reference = open_video(str(shared_data / "videos" / "dog.mp4"))
    for index in (0, len(video) - 10):
        assert np.array_equal(video.frames([index]), reference.frames([index]))
    assert video.frames([len(video) - 1]).shape == (1, 720, 1280, 3)


def test_damaged_frames_are_counted_on_request(tmp_path: Path) -> None:
    path = tmp_path / "noise.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), np.uint8)
    write_mp4(path, list(noise), 24)
    assert open_video(str(path), check=True).note is None
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    for position in range(start + 4000, start + 40_000, 400):
        data[position] ^= 0x5A
    path.write_bytes(data)
    video = open_video(str(path), check=True)
    assert "frames are damaged" in str(video.note)
    assert video.frames([0]).shape == (1, 64, 96, 3)


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 40])
def test_what_is_no_video_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(UnitError, match=r"bad\.mp4") as caught:
        open_video(str(tmp_path / "bad.mp4"))
    assert caught.value.reason == "unreadable_media"
    with pytest.raises(UnitError) as caught:
        open_video(str(tmp_path / "absent.mp4"))
    assert caught.value.reason == "missing_media"


def test_a_folder_of_frames_is_a_video(shared_data: Path, tmp_path: Path) -> None:
    video = open_video(f"{shared_data}/davis_judo/JPEGImages/480p/judo/", fps=24)
    assert len(video) == 16
    assert video.times_s[4] == pytest.approx(4 / 24)
    reference = cv2.imread(str(shared_data / "davis_judo/JPEGImages/480p/judo/00003.jpg"))[..., ::-1]
    assert np.array_equal(video.frames([3])[0], reference)
    with pytest.raises(UnitError, match="no frames"):
        open_video(f"{tmp_path}/")


def test_frames_of_a_folder_are_ordered_as_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((4, 4, 3), number, np.uint8))
    assert open_video(f"{tmp_path}/").frames([0, 1, 2])[:, 0, 0, 0].tolist() == [1, 2, 10]


def test_a_remote_video_is_read_from_a_copy_that_close_deletes(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    with fsspec.open("memory://clips/film.mp4", "wb") as target:
        target.write(film.read_bytes())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    video = open_video("memory://clips/film.mp4")
    assert number_of(video.frames([5])[0]) == 5
    assert len(list(tmp_path.iterdir())) == 1
    video.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnitError, match="no such file"):
        open_video("memory://clips/absent.mp4")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_keeps_the_videos_used_last(film: Path, tmp_path: Path) -> None:
    others = [tmp_path / f"{name}.mp4" for name in "ab"]
    for other in others:
        other.write_bytes(film.read_bytes())
    cache = VideoCache(max_open=2)
    first = cache.get(str(film))
    cache.get(str(others[0]))
    assert cache.get(str(film)) is first
    cache.get(str(others[1]))
    assert cache.get(str(film)) is first
    again = cache.get(str(others[0]))
    assert number_of(again.frames([4])[0]) == 4
    cache.close()


def test_shrunk_frames_keep_their_shape(film: Path) -> None:
    assert open_video(str(film)).frames([0, 1], max_side=48).shape == (2, 32, 48, 3)


def test_uniform_samples_include_both_ends_and_repeat_when_short(film: Path) -> None:
    assert uniform_indices(4, 12, 5) == [4, 6, 8, 10, 12]
    short = uniform_indices(3, 5, 8)
    assert (len(short), short[0], short[-1], set(short)) == (8, 3, 5, {3, 4, 5})
    indices, frames = sample_frames(open_video(str(film)), 6, 10, 20)
    assert indices == [10, 12, 14, 16, 18, 20]
    assert [number_of(f) for f in frames] == indices
    with pytest.raises(ValueError):
        uniform_indices(5, 4, 2)
