"""Clips in shards: which frames, what times, original bytes where there are such."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from schemas.sample import Sample
from stages.media.video import open_video
from stages.pack import PackConfig, finish_pack, plan_pack
from stages.pack.shards import clip_indices, uniform

INDEXES = ("index.json", "index-media.json")
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


def test_a_record_never_holds_guessed_times(new_corpus, write, tmp_path):
    """The video is away when captions are packed, after its pixels were: its place is kept, and a retry fills it."""
    corpus = new_corpus("clips")
    for seed in (3, 4):
        corpus.add_clip(seed, num_frames=20)
    config = CONFIG.model_copy(update={"layout": "split"})
    first = plan_pack(corpus.frames(), config)
    rows = write(first, tmp_path)
    wanted = finish_pack(str(tmp_path), first, rows)
    away = Path(corpus.media[0].uri)
    video = away.read_bytes()
    away.unlink()
    (tmp_path / next(shard["shard"] for shard in wanted["shards"] if shard["kind"] == "captions")).unlink()
    rows = write(first, tmp_path, rows)
    poor = finish_pack(str(tmp_path), first, rows)
    assert poor["missing_samples"] == [{"reason": "missing_media", "count": 1}]
    listed = {name: json.loads((tmp_path / first.folder / "train" / name).read_text())["shardlist"] for name in INDEXES}
    assert [[shard["nsamples"] for shard in shards] for shards in listed.values()] == [[2], [2]]
    away.write_bytes(video)
    assert finish_pack(str(tmp_path), first, write(first, tmp_path, rows, retry=True)) == wanted


def test_halves_are_listed_in_pairs_or_not_at_all(new_corpus, write, tmp_path):
    corpus = new_corpus("clips")
    corpus.add(1)
    corpus.add_clip(3, num_frames=20)
    config = CONFIG.model_copy(update={"layout": "split"})
    plan = plan_pack(corpus.frames(), config)
    rows = write(plan, tmp_path)
    shutil.rmtree(tmp_path / plan.folder, ignore_errors=True)
    Path(corpus.media[1].uri).unlink()
    manifest = finish_pack(str(tmp_path), plan, write(plan, tmp_path, rows))
    assert {(shard["form"], shard["kind"]) for shard in manifest["shards"]} == {("jpg", "media"), ("jpg", "captions")}
    assert {row["reason"] for row in manifest["failed"]} == {"missing_media", "no_caption_shard"}


def test_shards_of_pictures_that_are_encoded_anew_keep_their_bound(new_corpus, write, tmp_path):
    """Grain in a TIFF that is packed as JPEG: as PNG it is many times as large."""
    corpus = new_corpus("grain")
    for seed in range(8):
        pixels = np.random.default_rng(seed).integers(0, 255, (96, 128, 3), np.uint8)
        corpus.add_file(pixels, f"{seed}.tiff", "TIFF", compression="jpeg", quality=5)
    assert sum(media.num_bytes for media in corpus.media) < 40_000
    pack(corpus, write, tmp_path / "run", CONFIG.model_copy(update={"max_shard_bytes": 150_000}))
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.tar")]
    assert len(sizes) > 2
    assert max(sizes) < 150_000 + 10_240


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
    lossless = corpus.add(3, encoding="PNG", exif=exif, orientation=6)
    found = pack(corpus, write, tmp_path / "run")
    upright = np.asarray(Image.open(io.BytesIO(found[f"{lossless.hex()}.png"])))
    assert np.array_equal(upright, np.rot90(np.asarray(Image.open(corpus.media[2].uri)), -1))
    turned = Image.open(io.BytesIO(found[f"{key.hex()}.jpg"]))
    assert turned.size == (48, 64)
    assert turned.getexif().get(0x0112, 1) == 1
    stored = Image.open(io.BytesIO(found[f"{bmp.hex()}.png"]))
    assert np.array_equal(np.asarray(stored), np.asarray(Image.open(corpus.media[1].uri)))


def test_chosen_frames_are_distinct_and_inside():
    assert clip_indices(5, [4, 9], [(3, 40)], PackConfig(clip_frames=32)) == [0, 1, 2, 3, 4]
    assert uniform(3, 3, 8) == [3]
    assert uniform(4, 3, 8) == []
