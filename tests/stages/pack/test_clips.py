"""Clips in shards: which frames, what times, original bytes where there are such."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from schemas.sample import Sample
from stages.media.video import open_video
from stages.pack import PackConfig, finish_pack, plan_pack
from stages.pack.shards import clip_indices, uniform

CONFIG = PackConfig(layout="joined", validation_fraction=0, clip_frames=8, event_frames=4)


def pack(corpus, write, root, config=CONFIG) -> dict[str, bytes]:
    plan = plan_pack(corpus.frames(), config)
    finish_pack(str(root), plan, write(plan, root))
    found: dict[str, bytes] = {}
    for path in sorted(root.rglob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    return found


def test_a_clip_carries_its_frames_masks_events_and_captions(new_corpus, write, tmp_path):
    corpus = new_corpus("clips")
    key = corpus.add_clip(3, num_frames=70).hex()
    found = pack(corpus, write, tmp_path / "run")
    sample = Sample.model_validate_json(found[f"{key}.json"])
    indices = sample.media.frame_indices
    assert indices == sorted({*uniform(0, 69, 8), 0, *uniform(0, 34, 4), *uniform(35, 69, 4)})
    assert [round(time, 6) for time in sample.media.frame_times_s] == [index / 10 for index in indices]
    video = open_video(corpus.media[0].uri)
    every = video.frames(range(70)).astype(int)
    video.close()
    for number, index in enumerate(indices):
        member = np.asarray(Image.open(io.BytesIO(found[f"{key}.{number:03d}.jpg"]))).astype(int)
        nearest = np.abs(every - member).mean(axis=(1, 2, 3)).argmin()
        assert nearest % 48 == index % 48  # the square is at the same place every 48 frames
    region = sample.regions[0]
    assert [frame.frame_index for frame in region.frames] == list(range(70))
    assert [(event.start_frame, event.end_frame) for event in region.events] == [(0, 34), (35, 69)]
    stream = [caption for caption in region.captions if caption.task == "stream" and caption.language == "zh"]
    assert [caption.event_index for caption in stream] == [0, 1]


def test_frames_of_a_folder_are_never_encoded_again(new_corpus, write, tmp_path):
    corpus = new_corpus("clips")
    key = corpus.add_clip(3, num_frames=20, folder=True).hex()
    found = pack(corpus, write, tmp_path / "run")
    indices = Sample.model_validate_json(found[f"{key}.json"]).media.frame_indices
    for number, index in enumerate(indices):
        assert found[f"{key}.{number:03d}.jpg"] == (Path(corpus.media[0].uri) / f"{index:05d}.jpg").read_bytes()


def test_a_video_that_was_replaced_is_not_packed(new_corpus, write, tmp_path):
    corpus = new_corpus("clips")
    corpus.add_clip(3, num_frames=20)
    corpus.add_clip(4, num_frames=20)
    Path(corpus.media[0].uri).write_bytes(Path(corpus.media[1].uri).read_bytes())
    plan = plan_pack(corpus.frames(), CONFIG)
    manifest = finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    assert manifest["missing_samples"] == [{"reason": "media_changed", "count": 1}]
    assert manifest["totals"]["samples"] == 1


def test_pictures_and_clips_lie_in_shards_of_their_own(corpus, write, tmp_path):
    corpus.add_clip(3, num_frames=20)
    corpus.add(50, encoding="PNG")
    corpus.add(51, encoding="WEBP")
    found = pack(corpus, write, tmp_path / "run")
    forms = {path.name.split("-")[0] for path in tmp_path.rglob("*.tar")}
    assert forms == {"jpg", "png", "webp", "clip"}
    assert found[corpus.media[-2].media_key.hex() + ".png"] == Path(corpus.media[-2].uri).read_bytes()
    assert found[corpus.media[-1].media_key.hex() + ".webp"] == Path(corpus.media[-1].uri).read_bytes()


def test_turned_and_unusual_pictures_are_stored_upright(new_corpus, write, tmp_path):
    corpus = new_corpus("turned")
    exif = Image.Exif()
    exif[0x0112] = 6
    key = corpus.add(1, exif=exif, orientation=6)
    bmp = corpus.add(2, encoding="BMP")
    found = pack(corpus, write, tmp_path / "run")
    turned = Image.open(io.BytesIO(found[f"{key.hex()}.jpg"]))
    assert turned.size == (48, 64)
    assert turned.getexif().get(0x0112, 1) == 1
    stored = Image.open(io.BytesIO(found[f"{bmp.hex()}.png"]))
    assert np.array_equal(np.asarray(stored), np.asarray(Image.open(corpus.media[1].uri)))


def test_chosen_frames_are_distinct_and_inside():
    assert clip_indices(5, [4, 9], [(3, 40)], PackConfig(clip_frames=32)) == [0, 1, 2, 3, 4]
    assert uniform(3, 3, 8) == [3]
    assert uniform(4, 3, 8) == []
