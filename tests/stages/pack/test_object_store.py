"""Packs on an object store: the same bytes as on a disk, verified, reused and taken down there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest

from model.corpus import ShardCorpus
from stages.base import checked
from stages.pack import PackConfig, PackPlan, build_pack, finish_pack, pack_effort, plan_pack, verify_pack
from stages.pack.forget import holding, restate_pack, strip_shard


def written(plan: PackPlan, root: str, options: dict[str, Any] | None, before: list[pl.DataFrame]) -> pl.DataFrame:
    stage = build_pack(plan.config, root, options)
    waiting = plan.pending(pl.concat(before) if before else None)
    rows = [pl.DataFrame(pl.from_arrow(table)) for table in checked(stage, plan.fill(waiting))]
    return pl.concat([*before, *rows])


@pytest.mark.parametrize("layout", ["joined", "split"])
def test_a_pack_on_s3(
    corpus: Any,
    s3_url: str,
    s3_options: dict[str, Any],
    tmp_path: Path,
    write: Callable[..., pl.DataFrame],
    layout: Any,
) -> None:
    config = PackConfig(layout=layout, max_shard_bytes="16kB", validation_fraction=0.3)
    plan = plan_pack(corpus.frames(), config)
    rows = written(plan, s3_url, s3_options, [])
    assert finish_pack(s3_url, plan, rows, s3_options) == finish_pack(str(tmp_path), plan, write(plan, tmp_path))
    assert verify_pack(s3_url, plan.pack_id, s3_options) == []
    store = fsspec.filesystem("s3", **s3_options)
    base = s3_url.removeprefix("s3://")
    for path in tmp_path.rglob("*.tar"):
        assert store.cat_file(f"{base}/{path.relative_to(tmp_path)}") == path.read_bytes()

    loaded = ShardCorpus([f"{s3_url}/{plan.folder}/{split}" for split in ("train", "validation")], s3_options)
    assert len(loaded.index) == len(corpus.captions)
    assert loaded.load(0).read([0])[0].shape == (48, 64, 3)

    corpus.reject(corpus.captions[30].caption_key)
    second = plan_pack(corpus.frames(), config, rows)
    waiting = second.pending(rows)
    rows = written(second, s3_url, s3_options, [rows])
    effort = pack_effort(second, rows, waiting)
    assert effort["caption_shards_reused"] > effort["caption_shards_written"] > 0
    finish_pack(s3_url, second, rows, s3_options)

    gone = corpus.media[0].media_key
    shards = holding(s3_url, [gone], s3_options)
    assert all(strip_shard(s3_url, shard, [gone], s3_options) for shard in shards)
    for pack_id in (plan.pack_id, second.pack_id):
        restate_pack(s3_url, pack_id, shards, [gone], s3_options)
        assert verify_pack(s3_url, pack_id, s3_options) == []
    assert holding(s3_url, [gone], s3_options) == []
