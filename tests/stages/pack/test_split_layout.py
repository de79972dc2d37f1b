"""Media shards and caption shards: aligned, shared by packs, untouched by a new policy."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import polars as pl

from schemas.sample import Sample
from stages.pack import PackConfig, finish_pack, pack_effort, plan_pack, verify_pack

SPLIT = PackConfig(layout="split", max_shard_bytes="16kB", validation_fraction=0.3)
JOINED = PackConfig(layout="joined", max_shard_bytes="16kB", validation_fraction=0.3)


def names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return [member.name for member in archive]


def keys(path: Path) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in names(path)))


def pairs(plan, root: Path) -> list[tuple[Path, Path]]:
    """(media shard, caption shard) of each shard group."""
    units = plan.units.select("ordinal", "kind", "shard")
    joined = units.filter(pl.col("kind") == "media").join(units.filter(pl.col("kind") == "captions"), on="ordinal")
    return [(root / media, root / captions) for media, captions in joined.select("shard", "shard_right").iter_rows()]


def test_halves_are_aligned_sample_for_sample(corpus, write, tmp_path):
    corpus.reject(corpus.captions[0].caption_key)
    plan = plan_pack(corpus.frames(), SPLIT)
    finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    assert len(pairs(plan, tmp_path)) > 2
    for media, captions in pairs(plan, tmp_path):
        assert keys(media) == keys(captions) == sorted(keys(media))
        assert {name.split(".", 1)[1] for name in names(media)} == {"jpg"}
        assert {name.split(".", 1)[1] for name in names(captions)} == {"json"}


def test_a_media_without_kept_captions_keeps_its_place(new_corpus, write, tmp_path):
    corpus = new_corpus("one")
    corpus.add(0)
    corpus.add(1)
    for caption in corpus.captions[:4]:
        corpus.reject(caption.caption_key)
    plan = plan_pack(corpus.frames(), SPLIT.model_copy(update={"validation_fraction": 0}))
    finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    media, captions = pairs(plan, tmp_path)[0]
    assert keys(media) == keys(captions)
    with tarfile.open(captions) as archive:
        counts = {
            member.name.split(".")[0]: len(Sample.model_validate_json(archive.extractfile(member).read()).regions)
            for member in archive
        }
    assert counts[corpus.media[0].media_key.hex()] == 0
    assert counts[corpus.media[1].media_key.hex()] == 2
    index = pl.read_parquet(tmp_path / plan.folder / "regions.parquet")
    assert index["media_key"].unique().to_list() == [corpus.media[1].media_key.hex()]


def test_a_new_policy_writes_no_media_shard_and_only_changed_caption_shards(new_corpus, write, tmp_path):
    corpus = new_corpus("many")
    for seed in range(60):
        corpus.add(seed)
    first = plan_pack(corpus.frames(), SPLIT)
    rows = write(first, tmp_path)
    finish_pack(str(tmp_path), first, rows)
    corpus.reject(corpus.captions[0].caption_key)
    second = plan_pack(corpus.frames(), SPLIT, rows)
    assert second.pack_id != first.pack_id
    assert second.pending(rows).filter(pl.col("kind") == "media").is_empty()
    after = write(second, tmp_path, rows)
    new = after.filter(pl.col("pack_id") == second.pack_id)
    assert len(new) == first.units.filter(pl.col("kind") == "captions").height > 5
    assert new.filter(pl.col("bytes_written") > 0).height == 1
    effort = pack_effort(second, after, second.pending(rows))
    assert (effort["media_shards_written"], effort["caption_shards_written"]) == (0, 1)
    assert effort["caption_shards_reused"] == len(new) - 1
    assert effort["media_shards_reused"] == len(new)
    assert effort["bytes_written"] == int(new["bytes_written"].sum())
    assert effort["bytes_written"] < 0.05 * effort["bytes_total"]
    assert finish_pack(str(tmp_path), second, after)["totals"]["bytes"] == effort["bytes_total"]
    back = pack_effort(first, after, first.pending(after))
    assert back["bytes_written"] == 0, "a policy changed back writes nothing"


def test_an_unchanged_joined_shard_is_linked_not_written(new_corpus, write, tmp_path):
    corpus = new_corpus("many")
    for seed in range(40):
        corpus.add(seed)
    first = plan_pack(corpus.frames(), JOINED)
    rows = write(first, tmp_path)
    corpus.reject(corpus.captions[0].caption_key)
    second = plan_pack(corpus.frames(), JOINED, rows)
    after = write(second, tmp_path, rows).filter(pl.col("pack_id") == second.pack_id)
    assert after.filter(pl.col("bytes_written") > 0).height == 1
    clean = plan_pack(corpus.frames(), JOINED)
    alone = write(clean, tmp_path / "alone")
    columns = ["shard", "sha256", "num_bytes", "num_samples", "num_regions", "num_captions"]
    assert after.select(columns).sort("shard").equals(alone.select(columns).sort("shard"))
    for shard in after["shard"]:
        assert (tmp_path / shard).read_bytes() == (tmp_path / "alone" / shard).read_bytes()


def test_a_shard_that_is_to_be_reused_and_is_gone_is_written_again(new_corpus, write, tmp_path):
    corpus = new_corpus("many")
    for seed in range(20):
        corpus.add(seed)
    first = plan_pack(corpus.frames(), JOINED)
    rows = write(first, tmp_path)
    for shard in rows["shard"]:
        (tmp_path / shard).unlink()
    corpus.reject(corpus.captions[0].caption_key)
    second = plan_pack(corpus.frames(), JOINED, rows)
    after = write(second, tmp_path, rows).filter(pl.col("pack_id") == second.pack_id)
    assert (after["bytes_written"] == after["num_bytes"]).all()


def test_a_retried_media_shard_leaves_older_packs_as_they_were(new_corpus, write, tmp_path):
    corpus = new_corpus("some")
    for seed in range(4):
        corpus.add(seed)
    away = Path(corpus.media[0].uri)
    picture = away.read_bytes()
    away.unlink()
    config = PackConfig(layout="split", validation_fraction=0)
    first = plan_pack(corpus.frames(), config)
    rows = write(first, tmp_path)
    finish_pack(str(tmp_path), first, rows)
    corpus.reject(corpus.captions[-1].caption_key)
    second = plan_pack(corpus.frames(), config, rows)
    rows = write(second, tmp_path, rows)
    away.write_bytes(picture)

    rows = write(second, tmp_path, rows, retry=True)
    whole = finish_pack(str(tmp_path), second, rows)
    assert whole["missing_samples"] == []
    assert verify_pack(str(tmp_path), second.pack_id) == verify_pack(str(tmp_path), first.pack_id) == []
    (media,) = (shard["shard"] for shard in whole["shards"] if shard["kind"] == "media")
    assert f"{corpus.media[0].media_key.hex()}.jpg" in names(tmp_path / media)
    listed = json.loads((tmp_path / second.folder / "train/index-media.json").read_text())["shardlist"]
    assert (tmp_path / second.folder / "train" / listed[0]["url"]).resolve() == tmp_path / media
    assert write(second, tmp_path, rows, retry=True).equals(rows), "nothing is left to try"

    (tmp_path / media).unlink()
    rows = write(second, tmp_path, rows)
    assert finish_pack(str(tmp_path), second, rows) == whole
    assert verify_pack(str(tmp_path), second.pack_id) == []


def test_a_picture_that_is_gone_keeps_the_halves_aligned(corpus, write, tmp_path):
    Path(corpus.media[0].uri).unlink()
    plan = plan_pack(corpus.frames(), SPLIT)
    manifest = finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    for media, captions in pairs(plan, tmp_path):
        assert keys(media) == keys(captions)
    assert manifest["missing_samples"] == [{"reason": "missing_media", "count": 1}]
    index = pl.read_parquet(tmp_path / plan.folder / "regions.parquet")
    assert corpus.media[0].media_key.hex() not in index["media_key"].to_list()
