"""The demonstration: a drawn world with known truth, built into a corpus end to end, and measured against the truth."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from jobs.console import Lines, accounts_table, err, only_json, out, print_json
from jobs.looking import frame_table
from jobs.planting import TASKS, spoilt
from jobs.reporting import write_run_report
from pipeline.build import run_phases, session_of
from pipeline.config import EngineConfig, load_config
from pipeline.engine import Corpus, Counts
from pipeline.looking import evaluation_of, open_corpus
from pipeline.output import decisions
from pipeline.session import Session
from schemas.arrow import arrow_schema, conform
from schemas.caption import Caption
from schemas.geometry import Rle
from stages.base import with_digest
from stages.masks import decode
from stages.score.groups import all_columns
from stages.shapes.clips import write_clips
from stages.shapes.config import ShapesConfig
from stages.shapes.images import ShapesFolder, write_images
from stages.yields import precision_recall, yield_table

SPOILT_SHARE = 0.12
DEFECT_SHARE = 0.08
_BEFORE_SCORES = ("ingest", "select", "refine", "chunk", "distill")
_FROM_SCORES = ("score", "decide", "pack")


def run_demo(folder: Path, images: int, clips: int, seed: int, train_seconds: float, as_json: bool) -> dict[str, Any]:
    """Draws, builds, spoils captions on purpose, filters, packs, reports; prints what came out and returns it."""
    began = time.monotonic()
    config_path, photos = draw(folder, images, clips, seed)
    config = load_config(config_path)
    progress = None if as_json else Lines()
    with only_json(as_json), session_of(config, progress) as session:
        run_phases(session, _BEFORE_SCORES)
        planted = plant(session, seed)
        run_phases(session, _FROM_SCORES)
    result, now = session.result, open_corpus(config)
    figures = {
        "seconds": round(time.monotonic() - began, 1),
        "config": str(config_path),
        "stages": {name: count.as_dict() for name, count in result.stages.items()},
        "masks": mask_quality(now, photos),
        "filters": precision_recall(_by_captions(now), planted).to_dicts(),
        "pack": result.pack_id,
        "shards": shard_listing(result.pack or {}),
        "report": write_run_report(config),
        "pam": train_nano(config, result.pack_id, train_seconds) if train_seconds and result.pack_id else None,
    }
    figures["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        print_json(figures)
    else:
        show(config, now, figures)
    return figures


def draw(folder: Path, images: int, clips: int, seed: int, defects: float = DEFECT_SHARE) -> tuple[Path, ShapesFolder]:
    """Writes photos as COCO, clips as SA-V and the run's configuration; returns the latter's path and the photos.

    `defects` is the share of annotations that a planted defect replaces or joins.
    """
    err.print(f"drawing {images} photos and {clips} clips of shapes into {folder}/world")
    shapes = ShapesConfig(images=images, clips=clips, seed=seed, jitter=0.08, defects=defects)
    photos = write_images(folder / "world" / "photos", shapes)
    sources: list[dict[str, Any]] = [
        {
            "format": "coco",
            "name": "shapes",
            "annotations": "world/photos/instances.json",
            "media": "world/photos/images",
            "licence": "CC0-1.0",
        }
    ]
    if clips:
        write_clips(folder / "world" / "clips", shapes)
        where = "world/clips/videos"
        sources.append({"format": "sav", "name": "clips", "annotations": where, "media": where, "licence": "CC0-1.0"})
    settings = {
        "run": "run",
        "sources": sources,
        "select": {"min_side": 24, "max_per_image": 16, "seed": seed},
        "refine": refiner(),
        "chunk": {"backend": "motion"},
        "teacher": {"backend": "measured"},
        "captions": {"tasks": ["label", "explain", "brief", "detailed"], "languages": ["en"]},
        "policy": "policy/default.yaml",
        "pack": {"layout": "split", "max_shard_bytes": "1MB", "validation_fraction": 0.2},
    }
    path = folder / "demo.yaml"
    text = "# A drawn world: photos as COCO, clips as SA-V.\n" + yaml.safe_dump(settings, sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path, photos


def refiner() -> dict[str, Any]:
    """The small SAM 2 of this package, which knows such shapes, where the `sam2` package is installed; else GrabCut."""
    if importlib.util.find_spec("sam2") is None:
        return {"backend": "grabcut"}
    return {"backend": "sam2", "checkpoint": "nano"}


def plant(session: Session, seed: int, share: float = SPOILT_SHARE, tasks: Sequence[str] = TASKS) -> pl.DataFrame:
    """Spoils a `share` of the captions of these tasks as careless teachers would, in every way that applies.

    Returns `caption_key`, `defect` of the spoilt ones. A spoilt caption is committed as a further attempt at its row,
    so that the measured one stays below it.
    """
    now = session.corpus()
    told = pl.concat([step.rows for step in now.distill.values()])
    regions = now.masked.select("region_key", source_label="label")
    changes = {key: (kind, new) for key, kind, new in spoilt(told, regions, now.chunk.rows, seed, share, tasks)}
    for step in now.distill.values():
        mine = [row for row in step.rows.iter_rows(named=True) if row["caption_key"] in changes]
        rows = [{**row, "attempts": 2, **changes[row["caption_key"]][1]} for row in mine if row["attempts"] == 1]
        if rows:
            frame = pl.DataFrame(rows, schema=step.rows.schema)
            table = with_digest(conform(frame.to_arrow(), arrow_schema(Caption)), Caption)
            session.writer.commit_table(step.stage.table, step.fingerprint, table, "caption_key")
    planted = [{"caption_key": key, "defect": kind} for key, (kind, _) in changes.items()]
    return pl.DataFrame(planted, schema={"caption_key": pl.Binary, "defect": pl.String})


def _by_captions(now: Corpus) -> pl.DataFrame:
    """The decisions as the rules over captions alone would take them: a bad mask is not a bad caption."""
    policy = now.policy
    groups = all_columns()
    of_masks = [check.reason for check in policy.checks if groups[check.column].group == "mask"]
    against = pl.col("reasons").list.set_difference(pl.lit(of_masks)).list.len() > 0
    dropped = pl.col("status") == "filtered"
    return decisions(now, policy).with_columns(
        status=pl.when(dropped & ~against).then(pl.lit("ok")).otherwise("status")
    )


def mask_quality(now: Corpus, photos: ShapesFolder) -> dict[str, float]:
    """Mean IoU with the true masks of the photos: of the annotated box taken as a mask, and of the refined mask."""
    truth = json.loads(photos.truth.read_text(encoding="utf-8"))["annotations"]
    masks = now.masked.filter(pl.col("source") == "shapes").select("source_id", "seed_box", "mask")
    before, after = [], []
    for row in masks.iter_rows(named=True):
        known = truth.get(row["source_id"])
        if known is None or row["mask"] is None:
            continue
        true = decode(Rle.model_validate(known["mask"]))
        box = np.zeros_like(true)
        x0, y0, x1, y1 = (round(value) for value in row["seed_box"])
        box[y0:y1, x0:x1] = True
        before.append(_iou(box, true))
        after.append(_iou(decode(Rle.model_validate(row["mask"])), true))
    return {
        "regions": len(after),
        "box_iou": round(float(np.mean(before)), 4) if before else 0.0,
        "refined_iou": round(float(np.mean(after)), 4) if after else 0.0,
    }


def _iou(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def train_nano(config: EngineConfig, pack_id: str, seconds: float) -> dict[str, Any]:
    """Trains the nano PAM and a control whose captions are shuffled on the pack; the scores of both, held out."""
    from model.demo import train_and_validate  # torch and transformers: seconds to import

    err.print(
        f"training a nano PAM for {seconds:.0f} s on the run's shards and on drawn practice scenes, "
        "and its control on shuffled captions for as many steps"
    )
    pack = Path(config.run) / "packs" / pack_id
    shards = {split: [str(pack / split)] if (pack / split).exists() else [] for split in ("train", "validation")}
    done = train_and_validate(shards["train"], shards["validation"], Path(config.run) / "pam", seconds)
    names = sorted(set(done.learned.overall) | set(done.control.overall))
    return {
        "steps": done.training.steps,
        "seconds": round(done.seconds, 1),
        "checkpoint": str(done.training.checkpoint),
        "scores": [
            {"score": name, "learned": done.learned.value(name), "shuffled captions": done.control.value(name)}
            for name in names
        ],
    }


def shard_listing(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Path, samples and bytes of each shard of a pack's manifest."""
    return [
        {"shard": shard["shard"], "samples": shard["num_samples"], "bytes": shard["num_bytes"]}
        for shard in manifest.get("shards", [])
    ]


def show(config: EngineConfig, now: Corpus, figures: dict[str, Any]) -> None:
    """Prints the outcome for people."""
    counts = {name: Counts(*values.values()) for name, values in figures["stages"].items()}
    out.print(accounts_table(counts, "what became of every row"))
    masks = figures["masks"]
    out.print(
        f"masks: mean IoU with the truth {masks['box_iou']:.3f} for the annotated box, "
        f"{masks['refined_iou']:.3f} after refinement ({masks['regions']} regions)"
    )
    out.print(frame_table(pl.DataFrame(figures["filters"]), "planted caption defects: found by the rules"))
    spoke = yield_table(evaluation_of(now)).filter(pl.col("hits") > 0)
    out.print(frame_table(spoke, "yield: the checks that spoke"))
    out.print(frame_table(pl.DataFrame(figures["shards"]), f"pack {figures['pack']}"))
    if figures["pam"]:
        title = f"nano PAM on held-out media, {figures['pam']['steps']} steps"
        out.print(frame_table(pl.DataFrame(figures["pam"]["scores"]), title))
        out.print(f"nano PAM, its control and their validation: {figures['pam']['seconds']:.0f} s")
    out.print(f"report: {figures['report']}")
    out.print(f"{figures['seconds']:.0f} s; the same commands work on your data: perceive build {figures['config']}")
