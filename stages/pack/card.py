"""The dataset card of a pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml


def dataset_card(manifest: dict[str, Any]) -> str:
    """README.md of a pack: Hugging Face front matter and what is inside, from its manifest."""
    counts = manifest["counts"]
    front = {
        "pretty_name": f"Region captions, pack {manifest['pack_id']}",
        "language": sorted({row["language"] for row in counts}),
        "task_categories": ["image-to-text", "image-segmentation"],
        "tags": ["webdataset", "region-captioning"],
        "configs": _configs(manifest),
    }
    totals = manifest["totals"]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# Region captions, pack `{manifest['pack_id']}`",
        "",
        f"{totals['samples']} media, {totals['regions']} regions, {totals['captions']} captions in {totals['shards']} "
        f"shards ({totals['bytes']:,} bytes). SHA-256 sums are in `manifest.json`.",
        "",
        "## Captions",
        "",
        *_table(counts, ("split", "source", "task", "language", "captions", "regions", "media")),
        "",
        "## Sources and licences",
        "",
        *_table(manifest["licences"], ("source", "licence", "regions", "media")),
        "",
        "## Left out",
        "",
        *_table(manifest["excluded"], ("stage", "source", "task", "language", "reason", "count")),
        "",
    ]
    return "\n".join(lines)


def _configs(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """One configuration a form of sample, since a loader takes the members of the first sample for those of all."""
    found: dict[str, dict[str, list[str]]] = {}
    for shard in manifest["shards"]:
        if shard["kind"] != "media":
            found.setdefault(shard["form"], {}).setdefault(shard["split"], []).append(shard["form"])
    return [
        {
            "config_name": form,
            "data_files": [{"split": split, "path": f"{split}/{form}-*.tar"} for split in splits],
        }
        for form, splits in sorted(found.items())
    ]


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    if not rows:
        return ["Nothing."]
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return head + ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
