"""Packs are read by other people's libraries, without any code of this project."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.pack import PackConfig, finish_pack, plan_pack


@pytest.fixture
def pack(corpus, write, tmp_path):
    """A finished pack of JPEG pictures, its corpus and its folder."""
    return packed(corpus, write, tmp_path / "run", "joined")


@pytest.fixture
def split_pack(corpus, write, tmp_path):
    """The same in the split layout; every caption of the second picture is rejected."""
    for caption in corpus.captions[4:8]:
        corpus.reject(caption.caption_key)
    return packed(corpus, write, tmp_path / "run", "split")


def packed(corpus, write, root: Path, layout: str) -> Path:
    plan = plan_pack(corpus.frames(), PackConfig(layout=layout, max_shard_bytes="16kB", validation_fraction=0.3))
    finish_pack(str(root), plan, write(plan, root))
    return root / plan.folder


def shards(pack: Path) -> list[str]:
    return [str(path) for path in sorted(pack.glob("*/*.tar"))]


def original(corpus, name: str) -> np.ndarray:
    media = next(media for media in corpus.media if media.media_key.hex() == name)
    return np.asarray(Image.open(media.uri).convert("RGB"))


def test_webdataset(pack, corpus):
    import webdataset as wds

    seen = {}
    for sample in wds.WebDataset(shards(pack), shardshuffle=False).decode("pil"):
        seen[sample["__key__"]] = sample
        assert np.array_equal(np.asarray(sample["jpg"]), original(corpus, sample["__key__"]))
        assert sample["json"]["media"]["media_key"] == sample["__key__"]
    assert len(seen) == 12


def test_wids(pack, corpus):
    import wids

    seen = set()
    for index in sorted(pack.glob("*/index.json")):
        dataset = wids.ShardListDataset(str(index), keep=True)
        for position in range(len(dataset)):
            sample = dataset[position]
            seen.add(sample["__key__"])
            assert sample[".json"]["regions"]
    assert seen == {media.media_key.hex() for media in corpus.media}


def test_the_halves_of_a_split_pack_in_webdataset(split_pack, corpus):
    import webdataset as wds

    seen = []
    for split in ("train", "validation"):
        halves = (listed(split_pack / split, name) for name in ("index.json", "index-media.json"))
        records, pixels = (wds.WebDataset(half, shardshuffle=False).decode("pil") for half in halves)
        for record, media in zip(records, pixels, strict=True):
            assert record["__key__"] == media["__key__"] == record["json"]["media"]["media_key"]
            assert np.array_equal(np.asarray(media["jpg"]), original(corpus, media["__key__"]))
            seen.append(media["__key__"])
    assert set(seen) == {media.media_key.hex() for media in corpus.media}
    assert len(seen) == 12


def listed(folder: Path, name: str) -> list[str]:
    return [str(folder / shard["url"]) for shard in json.loads((folder / name).read_text())["shardlist"]]


def test_the_halves_of_a_split_pack_in_wids(split_pack, corpus):
    import wids

    regions = {}
    for split in ("train", "validation"):
        records, pixels = (
            wids.ShardListDataset(str(split_pack / split / name), keep=True)
            for name in ("index.json", "index-media.json")
        )
        assert len(records) == len(pixels)
        for position in range(len(records)):
            record, media = records[position], pixels[position]
            assert record["__key__"] == media["__key__"]
            assert np.array_equal(np.asarray(media[".jpg"]), original(corpus, media["__key__"]))
            regions[record["__key__"]] = len(record[".json"]["regions"])
    assert regions == {media.media_key.hex(): 2 * (media is not corpus.media[1]) for media in corpus.media}


@pytest.mark.parametrize("streaming", [True, False])
def test_the_halves_of_a_split_pack_in_datasets(split_pack, corpus, tmp_path, streaming):
    import datasets

    halves = []
    for name in ("index.json", "index-media.json"):
        files = {split: listed(split_pack / split, name) for split in ("train", "validation")}
        stated = json.loads((split_pack / "features.json").read_text())["jpg"]
        loaded = datasets.load_dataset(
            "webdataset",
            data_files=files,
            streaming=streaming,
            features=datasets.Features.from_dict(stated) if name == "index.json" else None,
            cache_dir=str(tmp_path / "cache"),
        )
        halves.append([row for split in loaded.values() for row in split])
    for record, media in zip(*halves, strict=True):
        assert record["__key__"] == media["__key__"]
        assert np.array_equal(np.asarray(media["jpg"].convert("RGB")), original(corpus, media["__key__"]))
        assert all(region["captions"][0]["text"].startswith("A dog") for region in record["json"]["regions"])
    assert len(halves[0]) == 12


def test_training_reads_a_split_pack_as_a_joined_one(split_pack, corpus, write, tmp_path):
    from model.corpus import ShardCorpus

    whole = packed(corpus, write, tmp_path / "joined", "joined")
    for split in ("train", "validation"):
        mine, other = (ShardCorpus([str(folder / split)]) for folder in (split_pack, whole))
        # media without captions have a record of their own in a split pack alone: numbers of samples differ
        assert mine.index.drop("sample").equals(other.index.drop("sample"))
        for row in range(0, len(mine.index), 4):
            (pixels,), (wanted,) = mine.load(row).read([0]), other.load(row).read([0])
            assert np.array_equal(pixels, wanted)
            assert np.array_equal(pixels, original(corpus, mine.index["media"][row]))


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets(pack, corpus, tmp_path, streaming):
    import datasets

    files = {split: [str(path) for path in sorted((pack / split).glob("*.tar"))] for split in ("train", "validation")}
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    seen = [row for split in loaded.values() for row in split]
    assert len(seen) == 12
    for row in seen:
        assert np.array_equal(np.asarray(row["jpg"].convert("RGB")), original(corpus, row["__key__"]))
        assert row["json"]["regions"][0]["captions"][0]["text"].startswith("A dog")


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_with_the_types_that_the_pack_states(new_corpus, write, tmp_path, streaming):
    """Labels are null in the first samples, from which `datasets` would otherwise guess the type; clips differ."""
    import datasets

    corpus = new_corpus("sparse")
    for seed in range(12):
        corpus.add(seed)
    for seed in range(3):
        corpus.add_clip(seed, num_frames=20 + 10 * seed)
    last = max(media.media_key for media in corpus.media if media.kind == "image")
    corpus.regions = [
        row if row.media_key == last else row.model_copy(update={"label": None, "licence": None})
        for row in corpus.regions
    ]
    plan = plan_pack(corpus.frames(), PackConfig(layout="joined", validation_fraction=0))
    finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    pack = tmp_path / plan.folder
    stated = json.loads((pack / "features.json").read_text())
    seen = {}
    for form in ("jpg", "clip"):
        loaded = datasets.load_dataset(
            "webdataset",
            data_files={"train": [str(path) for path in sorted(pack.glob(f"train/{form}-*.tar"))]},
            features=datasets.Features.from_dict(stated[form]),
            split="train",
            streaming=streaming,
            cache_dir=str(tmp_path / "cache"),
        )
        seen |= {row["__key__"]: row for row in loaded}
    assert len(seen) == 15
    labels = {key: {region["label"] for region in row["json"]["regions"]} for key, row in seen.items()}
    assert labels.pop(last.hex()) == {"dog"}
    assert set().union(*labels.values()) == {None}
    for media in corpus.media:
        row = seen[media.media_key.hex()]
        frames = [name for name, value in row.items() if name.endswith(".jpg") and value is not None]
        assert len(frames) == len(row["json"]["media"]["frame_indices"])


@pytest.mark.slow
def test_ray_data(pack, corpus):
    import ray

    mine = not ray.is_initialized()  # other tests of the session may have started one
    if mine:
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        rows = ray.data.read_webdataset(shards(pack), decoder=None).take_all()
    finally:
        if mine:
            ray.shutdown()
    assert {row["__key__"] for row in rows} == {media.media_key.hex() for media in corpus.media}
    for row in rows:
        picture = np.asarray(Image.open(io.BytesIO(row["jpg"])).convert("RGB"))
        assert np.array_equal(picture, original(corpus, row["__key__"]))
        assert json.loads(row["json"])["schema_version"] == 1
