"""Probing: one row a URI, media by content, references by source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image

from schemas.arrow import from_table, to_table
from schemas.keys import digest_value
from schemas.media import Media, MediaRef, Probe
from stages.base import checked
from stages.media.probe import ListedMedia, ProbeStage, media_rows, missing_rows, probe_units, ref_rows


def photo(path: Path, seed: int) -> Path:
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC).save(path)
    return path


def entry(path: Path, source: str = "a", **fields: object) -> ListedMedia:
    uri = str(path)
    size = path.stat().st_size if path.exists() else None
    facts = {"num_bytes": size, "etag": str(path.stat().st_mtime_ns) if size else None, "kind": "image"} | fields
    return ListedMedia(
        uri_key=digest_value({"uri": uri}), uri=uri, source=source, source_media_id=path.stem, split="train", **facts
    )


def probe(listed: pa.Table, before: pl.DataFrame | None = None) -> pl.DataFrame:
    stage = ProbeStage()
    tables = list(checked(stage, probe_units(listed, before)))
    return pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables]) if tables else pl.DataFrame()


def test_one_photo_in_two_sources_is_probed_once_and_is_one_media(tmp_path):
    path = photo(tmp_path / "a.png", 1)
    copy = tmp_path / "b.png"
    copy.write_bytes(path.read_bytes())
    listed = to_table([entry(path), entry(path, "b"), entry(copy, "c")], ListedMedia)
    probes = probe(listed)
    assert len(probes) == 2
    media = from_table(media_rows(probes), Media)
    refs = from_table(ref_rows(listed, probes), MediaRef)
    assert len(media) == 1
    assert media[0].uri == str(path)
    assert {ref.source: ref.media_key for ref in refs} == dict.fromkeys("abc", media[0].media_key)
    assert len({ref.ref_key for ref in refs}) == 3


def test_only_new_and_changed_files_are_probed_again(tmp_path):
    paths = [photo(tmp_path / f"{seed}.png", seed) for seed in range(3)]
    listed = to_table([entry(path) for path in paths], ListedMedia)
    probes = probe(listed)
    assert len(probe_units(listed, probes)) == 0
    photo(paths[1], 9)
    paths.append(photo(tmp_path / "new.png", 5))
    later = to_table([entry(path) for path in paths], ListedMedia)
    assert sorted(probe_units(later, probes)["uri"].to_pylist()) == sorted([str(paths[1]), str(paths[3])])


def test_missing_and_damaged_files_are_failed_rows(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    good = photo(tmp_path / "a.png", 1)
    listed = to_table(
        [entry(good), entry(tmp_path / "text.png"), entry(tmp_path / "gone.png", missing=True)], ListedMedia
    )
    rows = {Path(row.uri).name: row for row in from_table(probe(listed).to_arrow(), Probe)}
    assert rows["a.png"].status == "ok"
    assert (rows["text.png"].reason, rows["gone.png"].reason) == ("unreadable_media", "missing_media")
    assert rows["gone.png"].media_key is None
    refs = from_table(ref_rows(listed, probe(listed)), MediaRef)
    assert [ref.status for ref in refs] == ["ok", "failed", "failed"]


def test_a_file_that_vanished_since_the_listing_is_missing(tmp_path):
    path = photo(tmp_path / "a.png", 1)
    listed = to_table([entry(path)], ListedMedia)
    path.unlink()
    assert probe(listed)["reason"].to_list() == ["missing_media"]


def test_frame_folders_are_videos_keyed_by_all_their_frames(tmp_path):
    for index in range(4):
        photo(tmp_path / f"{index:05d}.png", index)
    listed = to_table([entry(tmp_path, kind="video", fps=8.0).model_copy(update={"uri": f"{tmp_path}/"})], ListedMedia)
    (first,) = from_table(media_rows(probe(listed)), Media)
    assert (first.kind, first.num_frames, first.fps, first.duration_s) == ("video", 4, 8.0, 0.5)
    photo(tmp_path / "00003.png", 77)
    (second,) = from_table(media_rows(probe(listed)), Media)
    assert first.media_key != second.media_key


def test_resized_copies_share_a_group_and_old_groups_stay(tmp_path):
    path = photo(tmp_path / "a.png", 1)
    first = pl.DataFrame(pl.from_arrow(media_rows(probe(to_table([entry(path)], ListedMedia)))))
    Image.open(path).resize((72, 48)).save(tmp_path / "small.jpg", quality=90)
    photo(tmp_path / "other.png", 2)
    listed = to_table([entry(tmp_path / name) for name in ("a.png", "small.jpg", "other.png")], ListedMedia)
    media = {Path(row.uri).name: row for row in from_table(media_rows(probe(listed), first), Media)}
    assert media["a.png"].group_key == first["group_key"][0] == media["small.jpg"].group_key
    assert media["other.png"].group_key == media["other.png"].media_key


def test_rows_of_missing_files_are_those_that_a_worker_would_make(tmp_path):
    listed = to_table([entry(tmp_path / f"{name}.png", missing=True) for name in ("a", "名")], ListedMedia)
    units = probe_units(listed)
    made = pa.concat_tables(checked(ProbeStage(), units))
    assert missing_rows(units).equals(made)
