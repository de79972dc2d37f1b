"""Looking at a run without changing it: its tables by name, its yield, its sampling indexes."""

from __future__ import annotations

import io
import json
from typing import Any

import polars as pl

from pipeline.config import EngineConfig
from pipeline.engine import Corpus, build_stages, frame_of
from pipeline.output import decisions, verdicts_of
from pipeline.tables import Run, View
from schemas.base import Row
from stages.base import fingerprint
from stages.decide import Evaluation, evaluate
from stages.pack import build_pack
from stages.pack.records import Packed


def open_corpus(config: EngineConfig) -> Corpus:
    """The current rows of a run; needs no lease."""
    live = config.runtime()
    return Corpus(live, build_stages(live), Run.open(live.run, live.storage_options).view())


def tables_of(now: Corpus) -> dict[str, pl.DataFrame]:
    """Current rows of every table by name, `decisions` and `scores/<group>` included."""
    policy = now.policy
    stage = build_pack(now.config.pack, now.config.run, now.config.storage_options)
    return {
        "media": now.media,
        "media_refs": now.refs,
        "regions": now.regions,
        "selection": now.selection,
        "masks": now.refine.rows,
        "events": now.chunk.rows,
        "captions": now.captions,
        "decisions": decisions(now, policy),
        "packed": frame_of(now.view, stage.table, [fingerprint(stage)], Packed),
        **{name: step.rows for step in now.score.values() for name in [step.stage.table]},
    }


def evaluation_of(now: Corpus) -> Evaluation:
    """The policy's word on every caption, check by check."""
    return evaluate(now.scored, now.policy, verdicts_of(now))


def sampling_indexes(now: Corpus) -> dict[str, pl.DataFrame]:
    """The sampling index of the current pack, by pack id."""
    snapshot, store = now.view.snapshot, now.view.store
    pack_id = snapshot.pointers.get("pack") if snapshot else None
    path = f"packs/{pack_id}/regions.parquet"
    if pack_id is None or not store.exists(path):
        return {}
    return {pack_id: pl.read_parquet(io.BytesIO(store.read(path)))}


def pack_manifest(view: View) -> dict[str, Any] | None:
    """The manifest of the current pack, by the snapshot's pointer; None where none is finished."""
    pack_id = view.snapshot.pointers.get("pack") if view.snapshot else None
    path = f"packs/{pack_id}/manifest.json"
    if pack_id is None or not view.store.exists(path):
        return None
    return dict(json.loads(view.store.read(path)))


def finished_packs(run: Run) -> list[str]:
    """The ids of the packs that have a manifest."""
    names = {info.path.split("/")[1] for info in run.store.files("packs") if info.path.endswith("/manifest.json")}
    return sorted(names)


def reasons_of(tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Why rows did not go on: table, status, reason, count."""
    frames = [
        frame.filter(pl.col("status") != "ok")
        .group_by("status", "reason")
        .agg(count=pl.len().cast(pl.Int64))
        .select(pl.lit(name).alias("table"), "status", "reason", "count")
        for name, frame in tables.items()
        if set(Row.model_fields) <= set(frame.columns) and name not in ("media", "packed")
    ]
    return pl.concat(frames).sort("table", "count", descending=[False, True])
