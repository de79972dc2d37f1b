"""What a trainer reads: region captions with the pixels behind them, from our shards.

A corpus is opened once: the headers and records of its shards are read, the pixels are not. Afterwards any caption is
read by its number, with one range request for the record and one for each frame, so that the order of training is a
list of numbers: it can be shuffled, divided and resumed exactly. Local files and fsspec URLs alike.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
import polars as pl
from fsspec.implementations.local import LocalFileSystem

from schemas.base import Box
from schemas.caption import Language, Task
from schemas.geometry import FrameMask, Point, Rle
from schemas.keys import digest_value
from schemas.sample import Sample, SampleCaption, SampleRegion
from stages import masks
from stages.base import UnitError
from stages.media.images import decode_image

CLIP_TASKS = ("video", "stream")


class CorpusError(Exception):
    """Training data cannot be read; the message names the file, the sample and the fix."""


@dataclass(frozen=True)
class Example:
    """One caption and how to see its target. Prompts are on the first listed frame, in its pixels.

    `key` names target and frames (not the task), so that tasks of one region share SAM 2's features; `picture` names
    the first frame, so that regions of one picture share its encoding. Neither changes when the data is moved;
    `origin` does: it tells the very files that hold the frames. `read(indices)` gives RGB uint8 frames
    (H, W, 3) by their number among the `count` listed ones, or raises CorpusError. `question` is a user turn given by
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
    origin: str = ""


class Corpus(Protocol):
    """Captions by number. `index` has a row a caption: video, task, language, source, length, media, region, label."""

    index: pl.DataFrame

    def load(self, number: int) -> Example:
        """The caption of row `number`. Raises CorpusError."""
        ...


@dataclass(frozen=True)
class _Member:
    """A file inside a tar: which shard, where, how long."""

    shard: int
    offset: int
    size: int


Pictures = dict[str, _Member]
"""A sample's pictures by the rest of their names, which sort as its frames do."""


@dataclass
class _Scan:
    """What lies in one shard: records (media key, where, index rows) in order, and pictures by media key."""

    records: list[tuple[str, _Member, list[list[Any]]]] = field(default_factory=list)
    pictures: dict[str, Pictures] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stored:
    """Where a sample's parts lie."""

    media: str
    record: _Member
    pictures: Pictures


def find_shards(source: str, options: dict[str, Any] | None = None) -> tuple[list[list[str]], list[str]]:
    """The tar files behind a path or fsspec URL: those of each folder it names, and those it names themselves.

    Globs may name both. A folder is a split of a pack: with an `index.json` it is read by it, and `index-media.json`
    adds the media shards of the split layout. Raises CorpusError when there are none.
    """
    fs, path = fsspec.url_to_fs(source, **(options or {}))
    found = fs.glob(path, detail=True) if "*" in path else {path: fs.info(path)} if fs.exists(path) else {}
    # a listing knows what is a file; only links have to be looked at
    folders = {path for path, info in found.items() if info["type"] != "file" and fs.isdir(path)}
    inside = [_of_folder(fs, folder) for folder in sorted(folders)]
    named = sorted(set(found) - folders)
    if not named and not any(inside):
        raise CorpusError(f"{source}: no *.tar shards there; name a split of a pack, such as RUN/packs/ID/train")
    return [list(map(fs.unstrip_protocol, part)) for part in inside], list(map(fs.unstrip_protocol, named))


def _of_folder(fs: Any, folder: str) -> list[str]:
    found = [shard for name in ("index.json", "index-media.json") for shard in _listed(fs, folder, name)]
    return found or sorted(fs.glob(f"{folder.rstrip('/')}/*.tar"))


def _listed(fs: Any, folder: str, name: str) -> list[str]:
    file = f"{folder.rstrip('/')}/{name}"
    if not fs.exists(file):
        return []
    urls = [entry["url"] for entry in json.loads(fs.cat_file(file))["shardlist"]]
    paths = [f"{folder.rstrip('/')}/{url}" for url in urls]
    local = isinstance(fs, LocalFileSystem)  # there a folder may be a link, and `..` means what it links to
    return [str(Path(path).resolve()) if local else posixpath.normpath(path) for path in paths]


class ShardCorpus:
    """The captions of WebDataset shards in the joined or the split layout.

    Sources may hold the same media, even the same captions (packs of one run): each caption is a row, read with its
    own record and with the pictures of its own source. `clip_frames` bounds how many frames of a clip are listed (PAM:
    32). Events in which the target is absent cannot be prompted and are left out; `skipped` counts them.
    """

    def __init__(self, sources: Sequence[str], options: dict[str, Any] | None = None, clip_frames: int = 32) -> None:
        self._options, self._clip_frames = options or {}, clip_frames
        found = [find_shards(source, options) for source in sources]
        groups = [part for inside, _ in found for part in inside] + [[shard for _, named in found for shard in named]]
        self._shards = list(dict.fromkeys(shard for group in groups for shard in group))
        self._open: tuple[int, Any] | None = None
        self._last: tuple[int, Sample] | None = None
        self.skipped = 0
        self._samples: list[_Stored] = []
        self.index = self._index(groups)
        if not len(self.index):
            raise CorpusError(f"{', '.join(sources)}: the shards hold no caption that can be trained on")

    def _scan(self, number: int) -> _Scan:
        shard, scan = self._shards[number], _Scan()
        try:
            with fsspec.open(shard, "rb", **self._options) as stream, tarfile.open(fileobj=stream) as archive:
                for info in archive:
                    key, _, extension = info.name.partition(".")
                    member = _Member(number, info.offset_data, info.size)
                    if extension == "json":
                        record = _parse(key, _given(archive.extractfile(info)).read())
                        scan.records.append((key, member, self._rows(key, record)))
                    elif extension.rsplit(".", 1)[-1] in ("jpg", "jpeg", "png", "webp"):
                        scan.pictures.setdefault(key, {})[extension] = member
        except (tarfile.TarError, EOFError) as error:
            raise CorpusError(f"{shard}: not a readable tar file ({error}); pack again, or fetch it again") from error
        return scan

    def _index(self, groups: list[list[str]]) -> pl.DataFrame:
        rows: list[list[Any]] = []
        scans = {shard: self._scan(number) for number, shard in enumerate(self._shards)}
        for group in groups:
            beside: dict[str, Pictures] = {}
            for shard in group:
                beside |= scans[shard].pictures
            for shard in group:
                for key, member, captions in scans[shard].records:
                    # joined: the pictures lie beside the record; split: in another shard of the same source
                    pictures = scans[shard].pictures.get(key) or beside.get(key, {})
                    rows += [[len(self._samples), *caption] for caption in captions]
                    self._samples.append(_Stored(key, member, pictures))
        names = ["sample", "media", "region_at", "caption_at", "video", "task", "language", "source", "length"]
        return pl.DataFrame(rows, schema=[*names, "region", "label"], orient="row")

    def _rows(self, key: str, sample: Sample) -> list[list[Any]]:
        rows: list[list[Any]] = []
        for at, region in enumerate(sample.regions):
            for which, caption in enumerate(region.captions):
                if _frames_of(sample, region, caption, self._clip_frames) is None:
                    self.skipped += 1
                    continue
                place, asked = [key, at, which], [caption.task, caption.language, region.source]
                label = region.label or caption.label or ""
                length = len(caption.text)
                rows.append([*place, _moving(sample, caption), *asked, length, region.region_key.hex(), label])
        return rows

    def load(self, number: int) -> Example:
        """The caption of row `number`, its record read again from the shard."""
        row = self.index.row(number, named=True)
        stored = self._samples[row["sample"]]
        if self._last is None or self._last[0] != row["sample"]:  # captions of one media follow each other
            self._last = row["sample"], _parse(stored.media, self._bytes(stored.record))
        sample = self._last[1]
        region = sample.regions[row["region_at"]]
        caption = region.captions[row["caption_at"]]
        listed = _given(_frames_of(sample, region, caption, self._clip_frames))
        shown = _shown(region, listed[0], sample)
        pictures = [stored.pictures[name] for name in sorted(stored.pictures)]
        if len(pictures) < (len(sample.media.frame_indices) or 1):
            raise CorpusError(f"{self._shards[stored.record.shard]}: sample {stored.media} lacks its pixels")
        shown_pictures = [pictures[place] for _, place in listed]

        def read(indices: Sequence[int]) -> list[np.ndarray]:
            return [self._decoded(stored.media, shown_pictures[at]) for at in indices]

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
            picture=f"{stored.media}-{listed[0][0]}",
            origin=digest_value([[self._shards[p.shard], p.offset, p.size] for p in shown_pictures]).hex(),
        )

    def _decoded(self, media: str, picture: _Member) -> np.ndarray:
        try:
            return decode_image(self._bytes(picture))
        except UnitError as error:
            raise CorpusError(f"{self._shards[picture.shard]}: sample {media}: {error.message}") from error

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
        raise CorpusError("a shard's record is no file, or a caption has lost its frames: pack again")
    return value
