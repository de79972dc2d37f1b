"""PAM's annotation files, as released or as exported, back into regions and captions.

`import_pam` writes `regions.jsonl` (the `regions` source format, so that ingest reads it like any other source) and
`captions.parquet`; after ingest, `imported_captions` gives the captions their region keys.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from schemas.arrow import to_table
from schemas.base import Record
from schemas.caption import NO_EVENT, Caption
from schemas.keys import digest_value
from stages.export.pam_text import Asked, read_turn
from stages.export.pam_validate import Problem, validate_pam
from stages.pack.tar import placed, write_bytes

_KNOWN = {"id", "type", "image", "image_root", "frames", "conversations", "bbox", "points", "labels"}
_NUMBER = re.compile(r"(\d+)$")
TEACHER = "pam-data"


class PamImport(Record):
    """What was read: counts of records, regions and captions, what was left out by reason, keys PAM does not define.

    `problems` are the validator's, by file: records with an error are left out.
    """

    records: int
    regions: int
    captions: int
    skipped: dict[str, int]
    unknown_keys: dict[str, int]
    problems: dict[str, list[Problem]]


def import_pam(files: Sequence[str | Path], out: str | Path) -> PamImport:
    """Reads annotation files and writes `regions.jsonl` and `captions.parquet` into a folder.

    Records of one target (same media, same prompt) become one region, whatever their tasks and languages. A streaming
    chain is recognised by its histories: a record whose previous caption is the answer of another one of the same
    video continues its chain, and the chain is one region with a box on the first frame of each event. Explain answers
    are kept as one text, since their separators are not documented. Unknown keys are kept as JSON in `extra`.
    """
    problems = {str(file): validate_pam(file, check_media=False) for file in files}
    reader = _Reader()
    for file in files:
        bad = {problem.line for problem in problems[str(file)] if problem.severity == "error"}
        for line, record in _records(Path(file)):
            reader.add(file, line, record, line in bad)
    regions, captions = reader.finish()
    folder = Path(out)
    lines = b"".join(json.dumps(region, ensure_ascii=False).encode() + b"\n" for region in regions)
    write_bytes(str(folder / "regions.jsonl"), lines)
    with placed(str(folder / "captions.parquet")) as stream:
        captions.write_parquet(stream)
    return PamImport(
        records=reader.records,
        regions=len(regions),
        captions=len(captions),
        skipped=dict(sorted(reader.skipped.items())),
        unknown_keys=dict(sorted(reader.unknown.items())),
        problems={file: found for file, found in problems.items() if found},
    )


def imported_captions(captions: pl.DataFrame, regions: pl.DataFrame, source: str) -> pa.Table:
    """`Caption` rows for imported captions whose regions have been ingested under the source's name.

    `captions` is `captions.parquet`, `regions` the run's regions. Captions whose region is not there are left out.
    """
    known = regions.filter((pl.col("source") == source) & (pl.col("status") == "ok"))
    joined = captions.join(known.select("source_id", "region_key", "media_key"), on="source_id", maintain_order="left")
    return to_table([_caption_row(row) for row in joined.iter_rows(named=True)], Caption)


def _caption_row(row: dict[str, Any]) -> Caption:
    about = {name: row[name] for name in ("region_key", "task", "language", "event_index")}
    return Caption(
        input_digest=digest_value([row["region_key"], row["text"]]),
        caption_key=digest_value(about),
        media_key=row["media_key"],
        text=row["text"],
        history=row["history"],
        label=row["text"] if row["task"] == "label" else None,
        outcome="answer",
        teacher=TEACHER,
        model="released",
        prompt_id=f"pam/{row['task']}-{row['language']}",
        prompt_hash=digest_value(row["question"]),
        **about,
    )


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    text = path.read_text("utf-8", errors="replace")
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except ValueError:
            return
        yield from enumerate(found if isinstance(found, list) else [], 1)
        return
    for line, raw in enumerate(text.split("\n"), 1):
        try:
            yield line, json.loads(raw)
        except ValueError:
            continue


class _Reader:
    """Gathers records into regions."""

    def __init__(self) -> None:
        self.records = 0
        self.skipped: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._regions: dict[str, dict[str, Any]] = {}
        self._captions: list[dict[str, Any]] = []
        self._chained: list[dict[str, Any]] = []

    def add(self, file: str | Path, line: int, record: Any, bad: bool) -> None:
        self.records += 1
        if bad:
            self.skipped["invalid"] += 1
            return
        turns = record["conversations"]
        asked = read_turn(turns[0]["value"], record["type"] == "video")
        if asked is None or len(turns) != 2:
            self.skipped["unknown_prompt" if asked is None else "several_turns"] += 1
            return
        extra = {name: value for name, value in record.items() if name not in _KNOWN}
        self.unknown.update(extra.keys())
        item = _item(record, asked, extra, f"{Path(file).name}:{line}")
        (self._chained if record["type"] == "video" else self._captions).append(item)

    def finish(self) -> tuple[list[dict[str, Any]], pl.DataFrame]:
        chains, loose = _chains(self._chained)
        self.skipped["no_chain"] += loose
        if not loose:
            del self.skipped["no_chain"]
        for item in self._captions:
            item["source_id"] = self._region(item, [item])
        for chain in chains:
            source_id = self._region(chain[0], chain)
            for index, item in enumerate(chain):
                streamed = len(chain) > 1
                item |= {"source_id": source_id, "task": "stream" if streamed else "video"}
                item["event_index"] = index if streamed else NO_EVENT
                self._captions.append(item)
        rows = [{name: item[name] for name in _CAPTIONS} for item in self._captions]
        captions = pl.DataFrame(rows, schema=_CAPTIONS, orient="row")
        once = captions.unique(["source_id", "task", "language", "event_index"], keep="first", maintain_order=True)
        if len(once) < len(captions):
            self.skipped["repeated"] += len(captions) - len(once)
        return [self._regions[key] for key in sorted(self._regions)], once

    def _region(self, item: dict[str, Any], chain: list[dict[str, Any]]) -> str:
        """The id of the region that a record, or a chain, is about; makes it where it is new."""
        about = [item["media"], item["frame_index"], item["box"], item["points"]]
        source_id = digest_value(about).hex()
        region = self._regions.setdefault(source_id, {"id": source_id})
        region |= {"media": item["media"], "frame_index": item["frame_index"]}
        region |= {name: item[name] for name in ("box", "points") if item[name] is not None}
        if item["task"] == "label" and item["language"] == "en":
            region["label"] = item["text"]
        elif item["task"] == "label":
            hint = {"kind": "label", "language": item["language"], "text": item["text"]}
            region["hints"] = [*region.get("hints", []), hint]
        if len(chain) > 1:
            region["track"] = [
                {"frame_index": each["frame_index"], "box": each["box"]} for each in chain if each["box"] is not None
            ]
        return source_id


def _item(record: dict[str, Any], asked: Asked, extra: dict[str, Any], where: str) -> dict[str, Any]:
    video = record["type"] == "video"
    box, points, labels = (_first(record, name) for name in ("bbox", "points", "labels"))
    frames = record.get("frames") or []
    return {
        "media": record["image_root"].rstrip("/") + "/" if video else record["image"],
        "frame_index": _frame_index(frames[0]) if video else 0,
        "start_frame": _frame_index(frames[0]) if video else None,
        "end_frame": _frame_index(frames[-1]) if video else None,
        "box": None if box is None else _xyxy(box),
        "points": None if points is None else [[*point, label] for point, label in zip(points, labels, strict=True)],
        "task": asked.task,
        "language": asked.language,
        "event_index": NO_EVENT,
        "history": asked.history,
        "text": record["conversations"][1]["value"],
        "question": record["conversations"][0]["value"],
        "extra": json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else None,
        "where": where,
    }


def _first(record: dict[str, Any], name: str) -> Any:
    value = record[name]
    return value[0] if value is not None and record["type"] == "video" else value


def _xyxy(box: Sequence[float]) -> list[float]:
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _frame_index(name: str) -> int:
    """The number in a frame's name (`00012.jpg` is frame 12 of the decode that PAM's own script makes)."""
    found = _NUMBER.search(Path(name).stem)
    return int(found.group(1)) if found else 0


def _chains(items: list[dict[str, Any]]) -> tuple[list[list[dict[str, Any]]], int]:
    """Chains of records by their histories, and how many records continue no chain."""
    chains: list[list[dict[str, Any]]] = []
    ends: dict[tuple[str, str, str], list[list[dict[str, Any]]]] = {}
    waiting = sorted(
        (item for item in items if item["history"] is not None), key=lambda item: (item["start_frame"], item["where"])
    )
    for item in items:
        if item["history"] is None:
            chains.append([item])
            ends.setdefault(_end(item, item["text"]), []).append(chains[-1])
    while waiting:
        left = []
        for item in waiting:
            open_chains = ends.get(_end(item, item["history"]), [])
            chain = next((each for each in open_chains if each[-1]["start_frame"] <= item["start_frame"]), None)
            if chain is None:
                left.append(item)
                continue
            open_chains.remove(chain)
            chain.append(item)
            ends.setdefault(_end(item, item["text"]), []).append(chain)
        if len(left) == len(waiting):
            break
        waiting = left
    return chains, len(waiting)


def _end(item: dict[str, Any], text: str) -> tuple[str, str, str]:
    return item["media"], item["language"], text.strip()


_CAPTIONS = {
    "source_id": pl.String,
    "media": pl.String,
    "task": pl.String,
    "language": pl.String,
    "event_index": pl.Int64,
    "text": pl.String,
    "history": pl.String,
    "question": pl.String,
    "start_frame": pl.Int64,
    "end_frame": pl.Int64,
    "where": pl.String,
    "extra": pl.String,
}
