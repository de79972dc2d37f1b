"""One region's whole life, from its source record to its shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schemas.base import Record

Tables = Mapping[str, pl.DataFrame]
_LONG = 160
_COLOURS = {"ok": "green", "filtered": "yellow", "failed": "red", "blocked": "magenta"}


class InspectError(LookupError):
    """No region, or more than one, has the key that was asked for; the message says which there are."""


class InspectReport(Record):
    """Everything a run knows of one region; rows as plain JSON values, keys in hexadecimal.

    `captions` hold their caption's row with its `scores` (by rule group) and its `decision`; `shards` name pack,
    shard and position of the sample.
    """

    region_key: str
    region: dict[str, Any]
    media: dict[str, Any] | None = None
    media_refs: list[dict[str, Any]] = []
    selection: dict[str, Any] | None = None
    masks: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []


def inspect(tables: Tables, key: str, packs: Mapping[str, pl.DataFrame] | None = None) -> InspectReport:
    """The life of the region with this key.

    `tables` are rows by table name (`media`, `media_refs`, `regions`, `selection`, `masks`, `events`, `captions`,
    `decisions`, `scores/<rule group>`); absent tables count as empty. `key` is hexadecimal: a region key, a caption
    key, or the key of a media with one region; at least 4 digits of its beginning. `packs` are sampling indexes by
    pack id. Raises `InspectError` where the key fits nothing or several regions.
    """
    region = _one(tables, key)
    region_key, media_key = region["region_key"], region["media_key"]
    captions = sorted(
        _of(tables, "captions", region_key), key=lambda row: (row["task"], row["language"], row["event_index"])
    )
    decisions = {row["caption_key"]: row for row in _of(tables, "decisions", region_key)}
    scores = _scores(tables, [row["caption_key"] for row in captions])
    life = [
        row | {"scores": scores.get(row["caption_key"], {}), "decision": decisions.get(row["caption_key"])}
        for row in captions
    ]
    return InspectReport(
        region_key=region_key.hex(),
        region=_plain(region),
        media=_plain(next(iter(_where(tables, "media", "media_key", media_key)), None)),
        media_refs=_plain(_where(tables, "media_refs", "media_key", media_key)),
        selection=_plain(next(iter(_of(tables, "selection", region_key)), None)),
        masks=_plain(sorted(_of(tables, "masks", region_key), key=lambda row: row["segment"])),
        events=_plain(sorted(_of(tables, "events", region_key), key=lambda row: row["event_index"])),
        captions=_plain(life),
        shards=[
            {"pack_id": pack_id} | row
            for pack_id, index in sorted((packs or {}).items())
            for row in index.filter(pl.col("region_key") == region_key.hex())
            .select("shard", "sample", "split")
            .unique()
            .to_dicts()
        ],
    )


def _one(tables: Tables, key: str) -> dict[str, Any]:
    wanted = key.strip().lower()
    if len(wanted) < 4 or set(wanted) - set("0123456789abcdef"):
        raise InspectError(f"{key!r} is no key: 4 to 32 hexadecimal digits")
    regions = tables.get("regions", pl.DataFrame())
    if regions.is_empty():
        raise InspectError("the run has no regions yet")
    found = regions.filter(_starts("region_key", wanted))
    if found.is_empty() and "captions" in tables:
        captions = tables["captions"].filter(_starts("caption_key", wanted))
        found = regions.join(captions, on="region_key", how="semi")
    if found.is_empty():
        found = regions.filter(_starts("media_key", wanted))
    if found.is_empty():
        raise InspectError(f"no region, caption or media has a key that begins with {wanted}")
    if len(found) > 1:
        some = ", ".join(each.hex() for each in found["region_key"].head(8))
        raise InspectError(f"{len(found)} regions fit {wanted}: {some}{' ...' if len(found) > 8 else ''}")
    return found.row(0, named=True)


def _starts(column: str, wanted: str) -> pl.Expr:
    return pl.col(column).bin.encode("hex").str.starts_with(wanted)


def _where(tables: Tables, table: str, column: str, key: bytes | None) -> list[dict[str, Any]]:
    if table not in tables or key is None:
        return []
    return tables[table].filter(pl.col(column) == key).to_dicts()


def _of(tables: Tables, table: str, region_key: bytes) -> list[dict[str, Any]]:
    return _where(tables, table, "region_key", region_key)


def _scores(tables: Tables, keys: list[bytes]) -> dict[bytes, dict[str, dict[str, Any]]]:
    found: dict[bytes, dict[str, dict[str, Any]]] = {}
    for table, frame in sorted(tables.items()):
        if table.startswith("scores/") and "caption_key" in frame.columns:
            for row in frame.filter(pl.col("caption_key").is_in(keys)).to_dicts():
                found.setdefault(row["caption_key"], {})[table.removeprefix("scores/")] = row
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


_BAR = 30
"""Characters of the event timeline."""

_INTERNAL = {
    "input_digest",
    "digest",
    "region_key",
    "media_key",
    "caption_key",
    "mask_key",
    "event_key",
    "scores",
    "decision",
}


def render(report: InspectReport) -> RenderableType:
    """The report for a terminal."""
    parts: list[RenderableType] = [Text(f"region {report.region_key}", style="bold")]
    parts.append(_facts("source record", report.region, report.region["status"]))
    if report.media:
        parts.append(_facts("media", report.media, report.media["status"]))
    for ref in report.media_refs:
        parts.append(_facts("named by", ref, ref["status"]))
    if report.selection:
        parts.append(_facts("selection", report.selection, report.selection["status"]))
    parts += [_facts(f"mask, segment {mask['segment']}", mask, mask["status"]) for mask in report.masks]
    if report.events:
        parts.append(_timeline(report.events))
    parts += [_facts(f"event {event['event_index']}", event, event["status"]) for event in report.events]
    for caption in report.captions:
        event = "" if caption["event_index"] < 0 else f" #{caption['event_index']}"
        name = f"caption {caption['task']} {caption['language']}{event} ({caption['caption_key']})"
        parts.append(_facts(name, caption, caption["status"]))
        for group, row in caption["scores"].items():
            parts.append(_facts(f"scores {group}", row, row.get("status", "ok"), indent=2))
        if caption["decision"]:
            parts.append(_facts("decision", caption["decision"], caption["decision"]["status"], indent=2))
    for shard in report.shards:
        parts.append(Text(f"packed in {shard['shard']}, sample {shard['sample']}", style="green"))
    if not report.shards:
        parts.append(Text("in no shard", style="dim"))
    return Group(*parts)


def _timeline(events: list[dict[str, Any]]) -> RenderableType:
    """The events along the clip's time, a row each: from when to when, a bar at its place, what happens."""
    begin, end = min(event["start_s"] for event in events), max(event["end_s"] for event in events)
    scale = _BAR / max(end - begin, 1e-6)
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for _ in ("event", "times", "bar"):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for event in events:
        first = min(round((event["start_s"] - begin) * scale), _BAR - 1)
        length = max(1, round((event["end_s"] - begin) * scale) - first)
        bar = " " * first + ("·" if event["absent"] else "━") * length
        times = f"{event['start_s']:.1f} - {event['end_s']:.1f} s"
        table.add_row(str(event["event_index"]), times, Text(f"{bar:<{_BAR}}", style="cyan"), event["motion"] or "")
    return Group(Text("timeline", style="bold cyan"), table)


def _facts(title: str, row: Mapping[str, Any], status: str, indent: int = 0) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, indent + 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in row.items():
        if name not in _INTERNAL and name != "status" and value not in (None, [], {}, ""):
            table.add_row(name, Text(_short(value)))
    head = Text(" " * indent + title + "  ", style="bold cyan").append(status, style=_COLOURS.get(status, "white"))
    return Group(head, table)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) > 4 and not isinstance(value[0], str):
        return f"{len(value)} of them: {_short(value[:2])}"
    text = str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text)} characters)"
