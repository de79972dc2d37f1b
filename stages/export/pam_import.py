"""PAM's annotation files, as released or as exported, back into regions and captions.

`import_pam` writes a source: `regions.jsonl` (format `regions`, so that ingest reads it like any other), the captions
of these regions as `captions.parquet` (`captions.imported` of the source, see `stages.distill.imported`), and the
events of streams as `spans.jsonl` (chunk back end `file`). `import_config` is the run configuration that uses them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from schemas.base import Record
from schemas.caption import NO_EVENT
from schemas.keys import digest_value
from stages.distill.imported import CAPTIONS_SCHEMA
from stages.export.pam_chains import Chain, link
from stages.export.pam_text import STREAMING, Asked, read_id, read_turn
from stages.export.pam_validate import Problem, validate_pam
from stages.ingest.listing import Folder, MediaRoots, tails
from stages.pack.tar import placed, write_bytes

_KNOWN = {"id", "type", "image", "image_root", "frames", "conversations", "bbox", "points", "labels"}
_NUMBER = re.compile(r"(\d+)$")
FPS = 24.0
REGIONS, CAPTIONS, SPANS, CONFIG = "regions.jsonl", "captions.parquet", "spans.jsonl", "corpus.yaml"


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


def import_pam(files: Sequence[str | Path], out: str | Path, media: Sequence[str] = (), fps: float = FPS) -> PamImport:
    """Reads annotation files and writes `regions.jsonl`, `captions.parquet` and `spans.jsonl` into a folder.

    Records of one target (same media, same prompt) become one region, whatever their tasks and languages. A streaming
    chain is recognised by the ids that the export gives, else by its histories (see `pam_chains.link`), and is one
    region with a box on the first frame of each event. A record without history is the first event of a stream where
    its file or its id says so or another record continues it, else the caption of a whole clip. Explain answers are
    kept as one text, since their separators are not documented. Unknown keys are kept as JSON in `extra`.

    Paths are those of the machine on which a file was written. Under the roots `media` a picture is found by the
    longest tail of its path, a frame by its place in its folder; without them paths stay, and a frame is numbered by
    its name. `fps` is the rate of frame folders.
    """
    problems = {str(file): validate_pam(file, check_media=False) for file in files}
    reader = _Reader(_Places(media), fps)
    for file in files:
        bad = {problem.line for problem in problems[str(file)] if problem.severity == "error"}
        for line, record in _records(Path(file)):
            reader.add(file, line, record, line in bad)
    regions, captions = reader.finish()
    folder = Path(out)
    for name, rows in ((REGIONS, regions), (SPANS, reader.spans())):
        lines = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        write_bytes(str(folder / name), lines)
    with placed(str(folder / CAPTIONS)) as stream:
        captions.write_parquet(stream)
    return PamImport(
        records=reader.records,
        regions=len(regions),
        captions=len(captions),
        skipped=dict(sorted(reader.skipped.items())),
        unknown_keys=dict(sorted(reader.unknown.items())),
        problems={file: found for file, found in problems.items() if found},
    )


def import_config(out: str | Path, media: Sequence[str], run: str) -> str:
    """The YAML of a run over what `import_pam` wrote into a folder: nothing is left out, nobody is asked.

    Events are cut where the imported streams have them. `media` are the roots of the pictures, `run` is the run's
    folder.
    """
    source = {
        "name": "pam",
        "format": "regions",
        "annotations": REGIONS,
        "media": list(media),
        "captions": {"imported": CAPTIONS},
    }
    config: dict[str, Any] = {
        "run": run,
        "sources": [source],
        "select": {"min_side": 1, "max_per_image": None, "duplicates": "keep_all"},
        "refine": {"backend": "grabcut"},
    }
    if (Path(out) / SPANS).stat().st_size:
        whole = {"min_s": 0.001, "max_s": 1e6, "min_absent_s": 1e6, "motion": {"pixels": False}}
        config["chunk"] = {"backend": "file", "file": SPANS, **whole}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


class _Places:
    """Where the pictures of records are under the media roots; each path is looked up once."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = MediaRoots(tuple(roots)) if roots else None
        self._folders: dict[str, tuple[str, Folder | None]] = {}

    def image(self, path: str) -> str:
        """The tail of the path that is a file under the roots; the path as it is where none is."""
        roots = self._roots
        return path if roots is None else next((tail for tail in tails(path) if roots.find(tail)), path)

    def folder(self, path: str) -> tuple[str, Folder | None]:
        """The same for a folder of frames, with what lies in it."""
        if path not in self._folders:
            roots = self._roots
            found = ((tail, roots.folder(tail)) for tail in tails(path)) if roots is not None else ()
            self._folders[path] = next(((tail, folder) for tail, folder in found if folder), (path.rstrip("/"), None))
        return self._folders[path]


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

    def __init__(self, places: _Places, fps: float) -> None:
        self._places, self._fps = places, fps
        self.records = 0
        self.skipped: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._regions: dict[str, dict[str, Any]] = {}
        self._captions: list[dict[str, Any]] = []
        self._chained: list[dict[str, Any]] = []
        self._spans: dict[str, tuple[int, list[list[float]]]] = {}

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
        item = _item(record, asked, extra, f"{Path(file).name}:{line}", self._places)
        item |= _stream_of(record, asked, Path(file).name)
        (self._chained if record["type"] == "video" else self._captions).append(item)

    def finish(self) -> tuple[list[dict[str, Any]], pl.DataFrame]:
        chains, loose = link(self._chained)
        self.skipped += loose
        for item in self._captions:
            item["source_id"] = self._region(item, [item])
        for chain in chains:
            source_id = self._region(chain[0], chain)
            streamed = len(chain) > 1 or chain[0]["streamed"]
            self._cut(source_id, chain, streamed)
            for index, item in enumerate(chain):
                item |= {"source_id": source_id, "task": "stream" if streamed else "video"}
                item["event_index"] = index if streamed else NO_EVENT
        self._tell(chains)
        rows = [{name: item[name] for name in CAPTIONS_SCHEMA} for item in self._captions]
        captions = pl.DataFrame(rows, schema=CAPTIONS_SCHEMA, orient="row")
        once = captions.unique(["source_id", "task", "language", "event_index"], keep="first", maintain_order=True)
        if len(once) < len(captions):
            self.skipped["repeated"] += len(captions) - len(once)
        return [self._regions[key] for key in sorted(self._regions)], once

    def _tell(self, chains: Sequence[Chain]) -> None:
        """Takes the captions of chains, the longest of a region, task and language; a stream that is shorter than the
        region's longest follows its cut up to its end, or is left out."""
        told: set[tuple[str, str, str]] = set()
        for chain in sorted(chains, key=len, reverse=True):
            first = chain[0]
            place = first["source_id"], first["task"], first["language"]
            cut = [start for start, _ in self._spans[first["source_id"]][1]]
            if first["task"] == "stream" and [item["start_frame"] / self._fps for item in chain] != cut[: len(chain)]:
                self.skipped["other_cut"] += len(chain)
            elif place in told:
                self.skipped["repeated"] += len(chain)
            else:
                told.add(place)
                self._captions += chain

    def spans(self) -> list[dict[str, Any]]:
        """The events of each video region in seconds, as chunk's back end `file` reads them."""
        return [{"source_id": key, "spans": self._spans[key][1]} for key in sorted(self._spans)]

    def _cut(self, source_id: str, chain: list[dict[str, Any]], streamed: bool) -> None:
        """Events follow each other without gaps; of several chains of a region the longest tells them, a whole clip's
        caption only where there is no stream."""
        starts = [item["start_frame"] / self._fps for item in chain]
        ends = [*starts[1:], (chain[-1]["end_frame"] + 1) / self._fps]
        spans = [[start, end] for start, end in zip(starts, ends, strict=True)]
        rank = len(spans) if streamed else 0
        if source_id not in self._spans or rank > self._spans[source_id][0]:
            self._spans[source_id] = rank, spans

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
        if item["start_frame"] is not None:
            region["fps"] = self._fps
        if len(chain) > max(1, len(region.get("track", []))):
            region["track"] = [
                {"frame_index": each["frame_index"], "box": each["box"]} for each in chain if each["box"] is not None
            ]
        return source_id


def _item(record: dict[str, Any], asked: Asked, extra: dict[str, Any], where: str, places: _Places) -> dict[str, Any]:
    video = record["type"] == "video"
    box, points, labels = (_first(record, name) for name in ("bbox", "points", "labels"))
    name, folder = places.folder(record["image_root"]) if video else (record["image"], None)
    frames = record["frames"] if video else []
    start, end = (_frame_index(frames[n], folder) if frames else None for n in (0, -1))
    return {
        "media": name + "/" if video else places.image(name),
        "frame_index": start or 0,
        "start_frame": start,
        "end_frame": end,
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


def _stream_of(record: dict[str, Any], asked: Asked, file: str) -> dict[str, Any]:
    """Whether a record is known to be of a stream, and the region and event that it has by an id of our own."""
    found = read_id(record.get("id"))
    if found is None or found.language != asked.language or (found.task == "video" and asked.history is not None):
        return {"own": None, "streamed": STREAMING in file}
    streamed = found.task == "stream"
    return {"own": (found.region, found.event_index) if streamed else None, "streamed": streamed}


def _first(record: dict[str, Any], name: str) -> Any:
    value = record[name]
    return value[0] if value is not None and record["type"] == "video" else value


def _xyxy(box: Sequence[float]) -> list[float]:
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _frame_index(name: str, folder: Folder | None) -> int:
    """A frame's place in its folder; without one the number in its name (`00012.jpg` is frame 12 of the decode that
    PAM's own script makes)."""
    if folder is not None and Path(name).name in folder.names:
        return folder.names.index(Path(name).name)
    found = _NUMBER.search(Path(name).stem)
    return int(found.group(1)) if found else 0
