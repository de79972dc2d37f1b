"""A media is taken out of shards and packs without a trace and without touching its neighbours."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import polars as pl
import pytest
import wids

from stages.pack import PackConfig, finish_pack, plan_pack, verify_pack
from stages.pack.forget import holding, packs_of, restate_pack, strip_shard


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


@pytest.mark.parametrize("layout", ["joined", "split"])
def test_forgetting(corpus, write, tmp_path, layout):
    config = PackConfig(layout=layout, max_shard_bytes="16kB", validation_fraction=0)
    root = str(tmp_path)
    first = plan_pack(corpus.frames(), config)
    rows = write(first, tmp_path)
    finish_pack(root, first, rows)
    corpus.reject(corpus.captions[30].caption_key)
    second = plan_pack(corpus.frames(), config, rows)
    rows = write(second, tmp_path, rows)  # most of its shards are links to those of the first
    finish_pack(root, second, rows)
    gone = corpus.media[0].media_key
    before = {path: members(path) for path in tmp_path.rglob("*.tar")}
    old = json.loads((tmp_path / second.folder / "manifest.json").read_bytes())

    shards = holding(root, [gone])
    assert len(shards) == (2 if layout == "joined" else 3)
    assert [strip_shard(root, shard, [gone]) for shard in shards] == [True] * len(shards)
    for _ in range(2):  # a second time changes nothing
        for pack_id in packs_of(root):
            restate_pack(root, pack_id, shards, [gone])
            assert verify_pack(root, pack_id) == []
    assert not any(strip_shard(root, shard, [gone]) for shard in shards)
    assert holding(root, [gone]) == []

    for path, was in before.items():
        kept = {name: data for name, data in was.items() if not name.startswith(gone.hex())}
        assert (members(path) if path.exists() else {}) == kept
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"]
    assert not any(gone.hex().encode() in data for data in files)
    new = json.loads((tmp_path / second.folder / "manifest.json").read_bytes())
    assert new["totals"]["samples"] == old["totals"]["samples"] - 1
    assert new["totals"]["captions"] == old["totals"]["captions"] - 4
    assert sum(row["regions"] for row in new["licences"]) == old["totals"]["regions"] - 2
    assert sum(row["captions"] for row in new["made_by"]) == new["totals"]["captions"]


def test_indexes_still_point_at_their_samples(corpus, write, tmp_path):
    config = PackConfig(layout="joined", max_shard_bytes="40kB", validation_fraction=0)
    plan = plan_pack(corpus.frames(), config)
    finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    gone = plan.members["media_key"][0]
    shards = holding(str(tmp_path), [gone])
    strip_shard(str(tmp_path), shards[0], [gone])
    restate_pack(str(tmp_path), plan.pack_id, shards, [gone])
    index = pl.read_parquet(io.BytesIO((tmp_path / plan.folder / "regions.parquet").read_bytes()))
    assert gone.hex() not in index["media_key"]
    for shard, sample, key in index.select("shard", "sample", "media_key").unique().iter_rows():
        keys = list(dict.fromkeys(name.split(".")[0] for name in members(tmp_path / shard)))
        assert keys[sample] == key
    dataset = wids.ShardListDataset(str(tmp_path / plan.folder / "train" / "index.json"), keep=True)
    assert {sample["__key__"] for sample in dataset} == set(index["media_key"])


@pytest.mark.parametrize(("layout", "count"), [("joined", 1), ("split", 2)])
def test_a_shard_of_one_media_is_deleted(new_corpus, write, tmp_path, layout, count):
    corpus = new_corpus("one")
    key = corpus.add(0)
    plan = plan_pack(corpus.frames(), PackConfig(layout=layout))
    rows = write(plan, tmp_path)
    finish_pack(str(tmp_path), plan, rows)
    shards = holding(str(tmp_path), [key])
    assert [strip_shard(str(tmp_path), shard, [key]) for shard in shards] == [True] * count
    restate_pack(str(tmp_path), plan.pack_id, shards, [key])
    assert not list(tmp_path.rglob("*.tar"))
    assert verify_pack(str(tmp_path), plan.pack_id) == []
    manifest = json.loads((tmp_path / plan.folder / "manifest.json").read_bytes())
    assert manifest["shards"] == manifest["counts"] == []
