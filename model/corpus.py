"""What a trainer reads: region captions with the pixels behind them, from our shards.

A corpus is opened once: the headers and records of its shards are read, the pixels are not. Afterwards any caption is
read by its number, with one range request for the record and one for each frame, so that the order of training is a
list of numbers: it can be shuffled, divided and resumed exactly. Local files and fsspec URLs alike.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
import polars as pl

from schemas.base import Box
from schemas.caption import Language, Task
from schemas.geometry import FrameMask, Point, Rle
from schemas.sample import Sample, SampleCaption, SampleRegion
from stages import masks
from stages.media.images import decode_image

CLIP_TASKS = ("video", "stream")


class CorpusError(Exception):
    """Training data cannot be read; the message names the file, the sample and the fix."""


@dataclass(frozen=True)
class Example:
    """One caption and how to see its target. Prompts are on the first listed frame, in its pixels.

    `key` names target and frames (not the task), so that tasks of one region share SAM 2's features; `picture` names
    the first frame, so that regions of one picture share its encoding. `read(indices)` gives RGB uint8 frames
    (H, W, 3) by their number among the `count` listed ones. `question` is a user turn given by
    the data itself (PAM-native files). For validation: `others` are further references, `truth` the target's mask on
    each listed frame of a clip (empty where the target is absent, None where unknown).
    """

    key: str
    video: bool
    count: int
    size: tuple[int, int]
    read: Callable[[Sequence[int]], list[np.ndarray]]
    box: Box | None
    points: list[Point]
    mask: Rle | None
    task: Task
    language: Language
    text: str
    history: str | None = None
    label: str | None = None
    question: str | None = None
    others: tuple[str, ...] = ()
    truth: tuple[Rle | None, ...] = ()
    picture: str | None = None


class Corpus(Protocol):
    """Captions by number. `index` has a row a caption: video, task, language, source, length, media, region, label."""

    index: pl.DataFrame

    def load(self, number: int) -> Example:
        """The caption of row `number`. Raises CorpusError."""
        ...


@dataclass
class _Member:
    shard: int
    offset: int
    size: int


@dataclass
class _Stored:
    """Where a sample's parts lie: its record, and its pictures in the order of their names."""

    record: _Member | None = None
    pictures: dict[str, _Member] = field(default_factory=dict)


def find_shards(source: str, options: dict[str, Any] | None = None) -> list[str]:
    """The tar files behind a path or fsspec URL: one file, a glob, or a folder (a split of a pack).

    A folder with an `index.json` is read by it, and `index-media.json` adds the media shards of the split layout.
    Raises CorpusError when there are none.
    """
    fs, path = fsspec.url_to_fs(source, **(options or {}))
    if fs.isdir(path):
        found = [shard for name in ("index.json", "index-media.json") for shard in _listed(fs, path, name)]
        found = found or sorted(fs.glob(f"{path.rstrip('/')}/*.tar"))
    else:
        found = sorted(fs.glob(path)) if "*" in path else [path] if fs.exists(path) else []
    if not found:
        raise CorpusError(f"{source}: no *.tar shards there; name a split of a pack, such as RUN/packs/ID/train")
    return [fs.unstrip_protocol(shard) for shard in found]


def _listed(fs: Any, folder: str, name: str) -> list[str]:
    file = f"{folder.rstrip('/')}/{name}"
    if not fs.exists(file):
        return []
    urls = [entry["url"] for entry in json.loads(fs.cat_file(file))["shardlist"]]
    return [str(Path(f"{folder.rstrip('/')}/{url}").resolve()) if ".." in url else f"{folder}/{url}" for url in urls]


class ShardCorpus:
    """The captions of WebDataset shards in the joined or the split layout.

    `clip_frames` bounds how many frames of a clip are listed (PAM: 32). Events in which the target is absent cannot be
    prompted and are left out; `skipped` counts them.
    """

    def __init__(self, sources: Sequence[str], options: dict[str, Any] | None = None, clip_frames: int = 32) -> None:
        self._options, self._clip_frames = options or {}, clip_frames
        self._shards = [shard for source in sources for shard in find_shards(source, options)]
        self._open: tuple[int, Any] | None = None
        self._last: tuple[str, Sample] | None = None
        self.skipped = 0
        stored: dict[str, _Stored] = {}
        records: list[tuple[str, bytes]] = []
        for number, shard in enumerate(self._shards):
            records += self._scan(number, shard, stored)
        self._samples = stored
        self.index = self._index(records)
        if not len(self.index):
            raise CorpusError(f"{', '.join(sources)}: the shards hold no caption that can be trained on")

    def _scan(self, number: int, shard: str, stored: dict[str, _Stored]) -> list[tuple[str, bytes]]:
        records = []
        try:
            with fsspec.open(shard, "rb", **self._options) as stream, tarfile.open(fileobj=stream) as archive:
                for info in archive:
                    key, _, extension = info.name.partition(".")
                    member = _Member(number, info.offset_data, info.size)
                    sample = stored.setdefault(key, _Stored())
                    if extension == "json":
                        sample.record = member
                        records.append((key, _given(archive.extractfile(info)).read()))
                    elif extension.rsplit(".", 1)[-1] in ("jpg", "jpeg", "png", "webp"):
                        sample.pictures[extension] = member
        except (tarfile.TarError, EOFError) as error:
            raise CorpusError(f"{shard}: not a readable tar file ({error}); pack again, or fetch it again") from error
        return records

    def _index(self, records: list[tuple[str, bytes]]) -> pl.DataFrame:
        rows = []
        for key, data in records:
            sample = _parse(key, data)
            for at, region in enumerate(sample.regions):
                for which, caption in enumerate(region.captions):
                    if _frames_of(sample, region, caption, self._clip_frames) is None:
                        self.skipped += 1
                        continue
                    what = [key, at, which, _moving(sample, caption), caption.task, caption.language, region.source]
                    label = region.label or caption.label or ""
                    rows.append([*what, len(caption.text), region.region_key.hex(), label])
        names = ["media", "region_at", "caption_at", "video", "task", "language", "source", "length", "region"]
        return pl.DataFrame(rows, schema=[*names, "label"], orient="row")

    def load(self, number: int) -> Example:
        """The caption of row `number`, its record read again from the shard."""
        row = self.index.row(number, named=True)
        stored = self._samples[row["media"]]
        if self._last is None or self._last[0] != row["media"]:  # captions of one media follow each other
            self._last = row["media"], _parse(row["media"], self._bytes(_given(stored.record)))
        sample = self._last[1]
        region = sample.regions[row["region_at"]]
        caption = region.captions[row["caption_at"]]
        listed = _given(_frames_of(sample, region, caption, self._clip_frames))
        shown = _shown(region, listed[0], sample)
        pictures = [stored.pictures[name] for name in sorted(stored.pictures)]
        if len(pictures) < (len(sample.media.frame_indices) or 1):
            raise CorpusError(f"{self._shards[_given(stored.record).shard]}: sample {row['media']} lacks its pixels")
        places = [place for _, place in listed]

        def read(indices: Sequence[int]) -> list[np.ndarray]:
            return [decode_image(self._bytes(pictures[places[at]])) for at in indices]

        return Example(
            key=f"{row['region']}-{listed[0][0]}-{listed[-1][0]}-{len(listed)}",
            video=row["video"],
            count=len(listed),
            size=(sample.media.height, sample.media.width),
            read=read,
            box=shown.box,
            points=region.points if shown.frame_index == region.frame_index else [],
            mask=shown.mask,
            task=caption.task,
            language=caption.language,
            text=caption.text,
            history=caption.history,
            label=region.label or caption.label,
            truth=_truth(region, listed, sample) if row["video"] else (),
            picture=f"{row['media']}-{listed[0][0]}",
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_last": None}  # a file handle stays in the process that opened it

    def _bytes(self, member: _Member) -> bytes:
        if self._open is None or self._open[0] != member.shard:
            if self._open is not None:
                self._open[1].close()
            self._open = member.shard, fsspec.open(self._shards[member.shard], "rb", **self._options).open()
        stream = self._open[1]
        stream.seek(member.offset)
        data: bytes = stream.read(member.size)
        return data


def _parse(key: str, data: bytes) -> Sample:
    try:
        return Sample.model_validate_json(data)
    except ValueError as error:
        raise CorpusError(f"sample {key}: its record is not a perceive-engine sample: {error}") from error


def _moving(sample: Sample, caption: SampleCaption) -> bool:
    return sample.media.kind == "video" and caption.task in CLIP_TASKS


def _frames_of(sample: Sample, region: SampleRegion, caption: SampleCaption, most: int) -> list[tuple[int, int]] | None:
    """(source frame, place among the sample's pictures) of the listed frames; None when the target is on none.

    A clip starts where the target is visible, since the prompt is on its first frame; an image task on a video takes
    the carried frame that is nearest to the region's own.
    """
    if sample.media.kind == "image":
        return [(0, 0)]
    carried = [(frame, place) for place, frame in enumerate(sample.media.frame_indices)]
    visible = {f.frame_index for f in region.frames if f.visible and (f.box or f.mask)}
    if region.box is not None or region.mask is not None:
        visible.add(region.frame_index)
    seen = [at for at, (frame, _) in enumerate(carried) if frame in visible]
    if caption.task not in CLIP_TASKS:
        nearest = min(seen, key=lambda at: abs(carried[at][0] - region.frame_index), default=None)
        return None if nearest is None else [carried[nearest]]
    span = (carried[0][0], carried[-1][0]) if carried else (0, -1)
    if caption.task == "stream":
        event = next((e for e in region.events if e.event_index == caption.event_index), None)
        if event is None or event.absent:
            return None
        span = event.start_frame, event.end_frame
    first = next((at for at in seen if span[0] <= carried[at][0] <= span[1]), None)
    if first is None:
        return None
    listed = [pair for pair in carried[first:] if pair[0] <= span[1]]
    picks = np.linspace(0, len(listed) - 1, min(most, len(listed))).astype(int)
    return [listed[at] for at in picks]


def _shown(region: SampleRegion, first: tuple[int, int], sample: Sample) -> FrameMask:
    """Box and mask of the target on the first listed frame."""
    found = next((f for f in region.frames if f.frame_index == first[0] and f.visible), None)
    if found is not None and (found.box or found.mask):
        return found
    return FrameMask(frame_index=first[0], time_s=0.0, visible=True, box=region.box, mask=region.mask)


def _truth(region: SampleRegion, listed: list[tuple[int, int]], sample: Sample) -> tuple[Rle | None, ...]:
    """The target's mask on each listed frame; an empty one where it is absent, None where nobody knows."""
    known = {f.frame_index: f for f in region.frames}
    height, width = sample.media.height, sample.media.width
    nothing = masks.encode(np.zeros((height, width), bool))
    found = [known.get(frame) for frame, _ in listed]
    return tuple(None if f is None else f.mask if f.visible else nothing for f in found)


def _given(value: Any) -> Any:
    if value is None:
        raise CorpusError("a sample has no record: its caption shard is missing or incomplete")
    return value
