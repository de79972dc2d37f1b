"""From tables to shards: what is inside, where it lies, what is left out."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import polars as pl
import pytest

from schemas.sample import Sample
from stages.pack import PackConfig, PackFrames, PackIncompleteError, finish_pack, plan_pack, verify_pack
from stages.pack.card import Story

NAMES = {"region_key", "task", "language", "event_index"}
SMALL = PackConfig(layout="joined", max_shard_bytes="16kB", validation_fraction=0.3)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def sizes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*.tar")}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_original_bytes_and_records_come_back(corpus, write, tmp_path):
    plan = plan_pack(corpus.frames(), SMALL)
    manifest = finish_pack(str(tmp_path / "run"), plan, write(plan, tmp_path / "run"))
    found = {}
    for path in (tmp_path / "run" / plan.folder).rglob("*.tar"):
        found |= members(path)
    assert len(found) == 24
    for media in corpus.media:
        assert found[f"{media.media_key.hex()}.jpg"] == Path(media.uri).read_bytes()
        sample = Sample.model_validate_json(found[f"{media.media_key.hex()}.json"])
        assert [caption.text for region in sample.regions for caption in region.captions if caption.language == "zh"]
        assert {region.region_key for region in sample.regions} == {
            region.region_key for region in corpus.regions if region.media_key == media.media_key
        }
        assert str(tmp_path) not in found[f"{media.media_key.hex()}.json"].decode()
    assert manifest["totals"] | {"bytes": 0, "shards": 0} == {
        "shards": 0, "bytes": 0, "samples": 12, "regions": 24, "captions": 48, "failed_shards": 0,
    }  # fmt: skip


def test_manifest_sums_are_those_of_the_files(corpus, write, tmp_path):
    plan = plan_pack(corpus.frames(), SMALL)
    manifest = finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    assert len(manifest["shards"]) > 2
    for shard in manifest["shards"]:
        data = (tmp_path / shard["shard"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard["sha256"], shard["num_bytes"])
        assert len(data) <= 16_000 + 10_240
    for file in manifest["files"]:
        data = (tmp_path / plan.folder / file["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]


def test_verify_finds_every_changed_and_missing_file(corpus, write, tmp_path):
    plan = plan_pack(corpus.frames(), SMALL)
    manifest = finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    assert verify_pack(str(tmp_path), plan.pack_id) == []
    first, second = (tmp_path / manifest["shards"][number]["shard"] for number in (0, 1))
    data = bytearray(first.read_bytes())
    data[700] ^= 1
    first.write_bytes(data)
    second.unlink()
    (tmp_path / plan.folder / "README.md").write_text("changed")
    problems = verify_pack(str(tmp_path), plan.pack_id)
    assert [problem.split(" ", 1)[1] for problem in problems] == [
        "has another SHA-256 than its manifest says",
        "is gone",
        "has another SHA-256 than its manifest says",
    ]


def test_equal_tables_give_equal_bytes_in_any_row_order(corpus, write, tmp_path):
    first = plan_pack(corpus.frames(), SMALL)
    finish_pack(str(tmp_path / "a"), first, write(first, tmp_path / "a"))
    for rows in (corpus.media, corpus.regions, corpus.masks, corpus.captions, corpus.decisions):
        rows.reverse()
    second = plan_pack(corpus.frames(), SMALL)
    finish_pack(str(tmp_path / "b"), second, write(second, tmp_path / "b"))
    assert first.pack_id == second.pack_id
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_packs_of_two_policies_that_keep_the_same_lie_side_by_side(corpus, write, tmp_path):
    first = plan_pack(corpus.frames(), SMALL, decided_by="one")
    rows = write(first, tmp_path)
    one = finish_pack(str(tmp_path), first, rows, story=Story(policy="one"))
    second = plan_pack(corpus.frames(), SMALL, rows, decided_by="two")
    after = write(second, tmp_path, rows)
    two = finish_pack(str(tmp_path), second, after, story=Story(policy="two"))
    assert one["pack_id"] != two["pack_id"]
    assert after.filter(pl.col("pack_id") == second.pack_id)["bytes_written"].to_list() == [0] * len(second.units)
    for plan, name in ((first, "one"), (second, "two")):
        assert f"Filters: {name}" in (tmp_path / plan.folder / "README.md").read_text()
        assert verify_pack(str(tmp_path), plan.pack_id) == []


def test_details_lie_beside_their_captions_in_the_sampling_index(corpus, write, tmp_path):
    plan = plan_pack(corpus.frames(), SMALL)
    named = pl.DataFrame([caption.model_dump(include=NAMES) for caption in corpus.captions])
    scores = named.with_columns(words=pl.int_range(len(named)).cast(pl.Float64), views=["crop"])
    manifest = finish_pack(str(tmp_path), plan, write(plan, tmp_path), details=scores.slice(1))
    index = pl.read_parquet(tmp_path / plan.folder / "regions.parquet")
    wanted = scores.with_columns(pl.col("region_key").bin.encode("hex"))
    wanted = wanted.with_columns(pl.when(pl.int_range(pl.len()) > 0).then(pl.col("words", "views")))
    order = ["region_key", "task", "language", "event_index"]
    assert index.select(wanted.columns).sort(order).equals(wanted.sort(order))
    assert sum(row["captions"] for row in manifest["counts"]) == len(index) == 48


def test_a_written_shard_is_not_pending(corpus, write, tmp_path):
    plan = plan_pack(corpus.frames(), SMALL)
    rows = write(plan, tmp_path)
    assert plan.pending(rows).is_empty()
    assert len(plan.pending(rows.slice(1))) == 1
    with pytest.raises(PackIncompleteError, match=r"1 of \d+ shards are not written"):
        finish_pack(str(tmp_path), plan, rows.slice(1))


def test_a_shard_that_is_lost_or_cut_short_is_written_again(corpus, write, tmp_path):
    plan = plan_pack(corpus.frames(), SMALL)
    rows = write(plan, tmp_path)
    finish_pack(str(tmp_path), plan, rows)
    whole = everything(tmp_path / "packs")
    lost, torn = (tmp_path / shard for shard in plan.units["shard"][:2])
    lost.unlink()
    torn.write_bytes(torn.read_bytes()[:-512])
    waiting = plan.pending(rows, sizes=sizes(tmp_path))
    assert waiting["shard"].to_list() == plan.units["shard"][:2].to_list()
    assert waiting["attempts"].to_list() == [1, 1]
    again = write(plan, tmp_path, rows)
    assert len(again) == len(rows) + 2
    finish_pack(str(tmp_path), plan, again)
    assert everything(tmp_path / "packs") == whole
    shutil.rmtree(tmp_path / "packs")
    assert len(plan.pending(again, sizes=sizes(tmp_path))) == len(plan.units)
    finish_pack(str(tmp_path), plan, write(plan, tmp_path, again))
    assert everything(tmp_path / "packs") == whole


def test_adding_media_moves_no_sample_and_keeps_most_shards(new_corpus, tmp_path):
    corpus = new_corpus("many")
    for seed in range(60):
        corpus.add(seed)
    before = plan_pack(corpus.frames(), SMALL)
    corpus.add(1000)
    after = plan_pack(corpus.frames(), SMALL)
    split_before = before.table("media").select("media_key", "pack_split")
    split_after = after.table("media").select("media_key", "pack_split")
    assert len(split_before.join(split_after, on=["media_key", "pack_split"])) == 60
    same = before.units.join(after.units, on="input_digest", how="semi")
    assert len(same) >= len(before.units) - 1 > 5


def test_duplicates_share_a_split(new_corpus):
    corpus = new_corpus("pairs")
    groups = [corpus.add(seed) for seed in range(40)]
    for seed, group in enumerate(groups):
        corpus.add(100 + seed, group=group)
    media = plan_pack(corpus.frames(), PackConfig(validation_fraction=0.5)).table("media")
    per_group = media.group_by("group_key").agg(pl.col("pack_split").n_unique(), pl.len())
    assert per_group["len"].to_list() == [2] * 40
    assert per_group["pack_split"].to_list() == [1] * 40
    assert media["pack_split"].n_unique() == 2


def test_what_is_left_out_is_counted_by_reason(corpus):
    corpus.reject(corpus.captions[0].caption_key, "repetition")
    corpus.captions[3] = corpus.captions[3].model_copy(
        update={"status": "failed", "reason": "refused", "outcome": "refused", "text": None}
    )
    corpus.masks[5] = corpus.masks[5].model_copy(update={"status": "filtered", "reason": "mask_unstable"})
    corpus.selection[6] = corpus.selection[6].model_copy(update={"status": "filtered", "reason": "too_small"})
    plan = plan_pack(corpus.frames(), SMALL)
    found = {(row["stage"], row["reason"]): row["count"] for row in plan.excluded.to_dicts()}
    assert found == {
        ("select", "too_small"): 1,
        ("refine", "mask_unstable"): 1, ("distill", "refused"): 1, ("decide", "repetition"): 1,
    }  # fmt: skip
    assert len(plan.table("captions")) == 48 - 1 - 1 - 2


def test_a_streaming_chain_ends_at_its_first_gap(new_corpus):
    corpus = new_corpus("stream")
    media = corpus.add(0, num_regions=1)
    region = corpus.regions[0].region_key
    keys = [corpus.add_caption(region, media, "en", f"event {i}", "stream", i) for i in range(4)]
    corpus.reject(keys[2])
    plan = plan_pack(corpus.frames(), SMALL)
    kept = plan.table("captions").filter(pl.col("task") == "stream")
    assert kept["event_index"].to_list() == [0, 1]
    assert ("pack", "chain_broken", 1) in plan.excluded.select("stage", "reason", "count").rows()


def test_a_media_that_is_gone_or_changed_is_named_and_the_rest_is_packed(corpus, write, tmp_path):
    Path(corpus.media[0].uri).unlink()
    Path(corpus.media[1].uri).write_bytes(Path(corpus.media[2].uri).read_bytes())
    plan = plan_pack(corpus.frames(), PackConfig(layout="joined", validation_fraction=0))
    manifest = finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    assert manifest["missing_samples"] == [
        {"reason": "media_changed", "count": 1},
        {"reason": "missing_media", "count": 1},
    ]
    assert manifest["totals"]["samples"] == 10
    index = pl.read_parquet(tmp_path / plan.folder / "regions.parquet")
    assert len(index) == 40
    assert index["sample"].max() == 9


def test_a_shard_without_readable_samples_is_failed_and_leaves_no_file(new_corpus, write, tmp_path):
    corpus = new_corpus("gone")
    corpus.add(0)
    Path(corpus.media[0].uri).unlink()
    plan = plan_pack(corpus.frames(), SMALL)
    rows = write(plan, tmp_path / "run")
    assert rows.select("status", "reason").rows() == [("failed", "missing_media")]
    assert not everything(tmp_path / "run")
    assert finish_pack(str(tmp_path / "run"), plan, rows)["totals"]["failed_shards"] == 1


def test_the_sampling_index_points_at_the_right_samples(corpus, write, tmp_path):
    plan = plan_pack(corpus.frames(), SMALL)
    finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    for row in pl.read_parquet(tmp_path / plan.folder / "regions.parquet").iter_rows(named=True):
        names = [name for name in members(tmp_path / row["shard"]) if name.endswith(".json")]
        assert names[row["sample"]] == row["media_key"] + ".json"
        record = json.loads(members(tmp_path / row["shard"])[names[row["sample"]]])
        assert row["region_key"] in {region["region_key"] for region in record["regions"]}


def test_an_empty_run_gives_an_empty_pack(new_corpus, write, tmp_path):
    plan = plan_pack(new_corpus("none").frames(), SMALL)
    assert plan.units.is_empty()
    manifest = finish_pack(str(tmp_path), plan, pl.DataFrame(schema=_packed_schema()))
    assert manifest["totals"]["samples"] == 0


def _packed_schema() -> dict[str, pl.DataType]:
    from stages.pack.frames import empty_frame
    from stages.pack.records import Packed

    return dict(empty_frame(Packed).schema)


@pytest.mark.parametrize("layout", ["joined", "split"])
def test_a_plan_in_slices_is_the_plan(new_corpus, write, tmp_path, layout):
    """However the tables come, in memory or lazily, whole or in slices: equal shards, indexes, manifests."""
    corpus = new_corpus("many")
    for seed in range(12):
        corpus.add(seed)
    corpus.add_clip(7, num_frames=20)
    corpus.reject(corpus.captions[3].caption_key)
    config = PackConfig(layout=layout, max_shard_bytes="16kB", validation_fraction=0.3)
    frames = corpus.frames()
    lazy = PackFrames(**{name: frame.lazy() for name, frame in frames})
    written = []
    for number, (tables, per_slice) in enumerate([(frames, 1000), (frames, 2), (lazy, 5)]):
        plan = plan_pack(tables, config, media_per_slice=per_slice)
        root = tmp_path / str(number)
        finish_pack(str(root), plan, write(plan, root))
        files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
        written.append({name: path.read_bytes() for name, path in files.items()})
    assert any(name.name == "manifest.json" for name in written[0])
    assert written[0] == written[1] == written[2]


def test_a_shard_that_lacks_samples_is_written_again_on_request(corpus, write, tmp_path):
    gone = Path(corpus.media[0].uri)
    data = gone.read_bytes()
    gone.unlink()
    config = PackConfig(layout="joined", max_shard_bytes="40kB", validation_fraction=0)
    plan = plan_pack(corpus.frames(), config)
    rows = write(plan, tmp_path)
    assert not len(plan.pending(rows))
    gone.write_bytes(data)
    waiting = plan.pending(rows, retry=True)
    assert waiting["attempts"].to_list() == [1]
    again = write(plan, tmp_path, rows.filter(~pl.col("shard_key").is_in(waiting["shard_key"].implode())))
    assert finish_pack(str(tmp_path), plan, again)["missing_samples"] == []
