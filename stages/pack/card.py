"""The dataset card of a pack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import yaml

from schemas.base import Record
from schemas.sample import Sample, SampleCaption, SampleEvent, SampleMedia, SampleRegion


class Story(Record):
    """How the captions of a pack came about, as far as a pack's own samples do not tell it.

    `policy` names the policy and its digest (hexadecimal). `yields` has a row a check (reason, column, captions, ran,
    hits), `cost` a row a teacher and model: its captions, kept or not; replies, prompt_tokens, completion_tokens and
    cost_usd (None without a list price) of all that was bought; captions whose calls were saved.
    """

    policy: str = ""
    yields: list[dict[str, Any]] = []
    cost: list[dict[str, Any]] = []


def dataset_card(manifest: dict[str, Any]) -> str:
    """README.md of a pack: Hugging Face front matter and what is inside, from its manifest."""
    front = {
        "pretty_name": f"Region captions, pack {manifest['pack_id']}",
        "language": sorted({row["language"] for row in manifest["counts"]}),
        "license": "other",
        "license_name": "those of the sources",
        "task_categories": ["image-to-text", "image-segmentation"],
        "tags": ["webdataset", "region-captioning"],
        "configs": _configs(manifest),
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# Region captions, pack `{manifest['pack_id']}`",
        "",
        *_sections(manifest),
    ]
    return "\n".join(lines)


def _sections(manifest: dict[str, Any]) -> Iterator[str]:
    totals = manifest["totals"]
    story = Story.model_validate(manifest.get("story", {}))  # packs from before it was told have none
    yield (
        f"{totals['samples']} media, {totals['regions']} regions, {totals['captions']} captions in {totals['shards']} "
        f"shards ({totals['bytes']:,} bytes)."
    )
    yield from _section("Captions", manifest["counts"], "split source task language captions regions media")
    yield from _section("Splits", _splits(manifest), "split samples captions shards")
    yield "A media is in the split that its group of near duplicates is in, drawn by the group's key and the seed "
    yield f"{manifest['config']['seed']}; {manifest['config']['validation_fraction']:.0%} of the groups are validation."
    yield from _section("Sources and licences", manifest["licences"], "source licence regions media")
    yield "Pictures and captions are under the licence of their source, which each region's record names."
    yield from _section("Fields of a record", _fields(), "record field type")
    yield "Boxes are `xyxy` in pixels of the upright picture, masks are COCO run lengths, times are seconds."
    yield from _section("Teachers and prompts", manifest["made_by"], " ".join((*MAKERS, "captions")))
    yield "A prompt's hash covers its template, the passages that it includes and its answer's schema."
    yield from _section(f"Filters{': ' + story.policy if story.policy else ''}", story.yields,
                        "reason column captions ran hits")  # fmt: skip
    yield "`hits` of the captions on which a rule ran speak against them; a caption may be hit by several rules."
    yield from _section("Cost", story.cost, _COST)
    yield "`captions` counts those that were made, kept or not. Replies, tokens and dollars are all that was bought, "
    yield "questions of judges among it; dollars by list prices, empty where none is known. `saved` captions needed no "
    yield "call of their own: their reply had been bought for another one."
    yield from _section("Left out", manifest["excluded"], "stage source task language reason count")
    yield from _section("Checksums", manifest["shards"], "shard num_samples num_captions num_bytes sha256", _SHOWN)
    yield "`manifest.json` has the SHA-256 of every file."
    yield from ("", "## Limits", "")
    yield from _LIMITS
    yield ""


MAKERS = ("task", "language", "teacher", "model", "prompt_id", "prompt_hash")
_COST = "teacher model captions replies saved prompt_tokens completion_tokens cost_usd"
_SHOWN = 50
_LIMITS = (
    "- Captions are written by models and filtered by rules; nobody has read them all.",
    "- Masks are refined by a model, or by colour where there was none, and are not drawn by hand.",
    "- The teacher `measured` is no model: it puts into words what can be measured in the pixels.",
    "- Labels, boxes and their errors come from the sources; their biases are those of the sources.",
    "- Media may be withdrawn by their owners: such a media is taken out of the pack, and the checksums change.",
)


def _section(title: str, rows: Sequence[dict[str, Any]], columns: str, most: int | None = None) -> Iterator[str]:
    yield from ("", f"## {title}", "", *_table(rows[:most], columns.split()), "")
    if most is not None and len(rows) > most:
        yield f"And {len(rows) - most} more."


def _splits(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"split": split} | counts for split, counts in manifest["splits"].items()]


def _fields() -> list[dict[str, str]]:
    models: dict[str, type[Record]] = {
        "sample": Sample,
        "media": SampleMedia,
        "region": SampleRegion,
        "event": SampleEvent,
    }
    models |= {"caption": SampleCaption}
    return [
        {"record": record, "field": name, "type": _type_name(field.annotation)}
        for record, model in models.items()
        for name, field in model.model_fields.items()
    ]


def _type_name(annotation: Any) -> str:
    """A type as readers of JSON know it."""
    if annotation is bytes:
        return "str (32 hexadecimal digits)"
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b(?:typing|schemas\.\w+)\.", "", text)


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
