"""Relatives of COCO: Objects365 v2, PACO-LVIS and V3Det. The format is `stages.ingest.coco`'s; here is what differs.

Objects365 v2 (https://www.objects365.org): boxes only; `file_name` holds the folders of an old release; `isfake` boxes
are drawings and the like, `isreflected` ones lie in a mirror. PACO (https://github.com/facebookresearch/paco): parts
are categories `object:part` whose annotations name their object in `obj_ann_id`; attributes are ids into `attributes`.
V3Det (https://v3det.openxlab.org.cn): boxes only; categories carry `name_zh`, `cat_info` and `cat_info_gpt`; photos
were crawled, so that some are missing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from stages.ingest.coco import (
    Document,
    Flavour,
    adapter,
    hint,
    image_names,
    lvis_names,
    plain_category,
    spoken,
)


def _objects365_names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    name = entry.get("file_name")
    if not isinstance(name, str):
        return ()
    parts = name.split("/")
    return (name, "/".join(parts[-2:]), parts[-1])


def _objects365_extra(entry: Mapping[str, Any], row: dict[str, Any], document: Document) -> None:
    if entry.get("isfake"):
        row.setdefault("bad", "fake")
        row.setdefault("message", "marked isfake: a picture or a sculpture of the thing")
    if entry.get("isreflected"):
        row["hints"] = [*row.get("hints", []), hint("attribute", "seen in a reflection")]


def _v3det_category(entry: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
    name = spoken(str(entry["name"]))
    hints = [hint("label", name)]
    for field, kind, language in (
        ("name_zh", "label", "zh"),
        ("cat_info", "definition", "en"),
        ("cat_info_gpt", "definition", "en"),
    ):
        text = entry.get(field)
        if isinstance(text, str) and text.strip():
            hints.append(hint(kind, text.strip(), language))
    return name, hints


def _paco_category(entry: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """`mug:handle` is called `handle of mug`."""
    whole, colon, part = str(entry["name"]).partition(":")
    if not colon:
        name = spoken(whole)
        return name, [hint("label", name)]
    name = f"{spoken(part)} of {spoken(whole)}"
    return name, [hint("label", name), hint("relation", f"part of {spoken(whole)}")]


def _paco_extra(entry: Mapping[str, Any], row: dict[str, Any], document: Document) -> None:
    owner = entry.get("obj_ann_id")
    row["is_part"] = owner is not None and owner != entry.get("id")
    wanted = entry.get("attribute_ids")
    if not isinstance(wanted, list) or not wanted:
        return
    names = _attributes(document)
    known = dict.fromkeys(item for item in wanted if isinstance(item, int) and item in names)
    texts = [names[item] for item in known]
    row["hints"] = [*row.get("hints", []), *(hint("attribute", text) for text in texts)]


def _attributes(document: Document) -> dict[int, str]:
    entries = document.raw.get("attributes", [])
    return {
        entry["id"]: spoken(entry["name"])
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("name"), str)
    }


def _paco_names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    names = (*lvis_names(entry), *image_names(entry))
    return tuple(dict.fromkeys((*names, *(posixpath.basename(name) for name in names))))


OBJECTS365 = adapter(
    Flavour(_objects365_names, plain_category, extra=_objects365_extra, odd_keys=("isfake", "isreflected")),
    benchmark_splits={"val": "DLC-Bench and Ref-L4 take their images from Objects365 v2 val"},
)
V3DET = adapter(Flavour(image_names, _v3det_category), benchmark_splits={"val": "V3Det val"})
PACO = adapter(
    Flavour(
        _paco_names,
        _paco_category,
        extra=_paco_extra,
        odd_keys=("obj_ann_id", "attribute_ids"),
        members=("attributes",),
    ),
    benchmark_splits={"val": "PACO val (Osprey's 1k)", "test": "PACO test"},
)
