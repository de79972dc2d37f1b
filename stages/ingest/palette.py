"""Palette masks: videos as folders of frames, masks as PNGs whose palette index is the object id.

DAVIS 2017 (https://davischallenge.org): `Annotations/480p/<video>/00000.png` beside `JPEGImages/480p/<video>/00000.jpg`
at 24 frames a second; Ref-DAVIS adds lines `video object "expression"`. YouTube-VOS (https://youtube-vos.org): every
fifth frame of 30 a second, `meta.json` with each object's category and frames; Ref-YouTube-VOS adds
`meta_expressions.json`. Index 0 is background and 255 void. An object may start in mid-video.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from stages.base import UnitError
from stages.ingest import jsonstream, rle
from stages.ingest.base import Adapter, Source, SourceError, batches
from stages.ingest.coco import bad, hint, listed, spoken
from stages.ingest.listing import Folder, list_files
from stages.ingest.tracks import first_visible, folder_fps, point
from stages.media.images import read_bytes
from stages.media.probe import ListedMedia

DAVIS_FPS = 24.0
YOUTUBE_VOS_FPS = 30.0
VOID = 255
_BATCH_OBJECTS = 64
_REF_DAVIS = re.compile(r'^\s*(\S+)\s+(\d+)\s+"?(.*?)"?\s*$')


@dataclass
class About:
    """What text files say of one object."""

    label: str | None = None
    hints: list[dict[str, str]] = field(default_factory=list)
    first_frame: str | None = None


Texts = Mapping[tuple[str, int], About]


def davis_texts(source: Source) -> Texts:
    """Ref-DAVIS expressions (role `expressions`), where configured."""
    texts: defaultdict[tuple[str, int], About] = defaultdict(About)
    path = source.config.optional_annotation("expressions")
    if path is not None:
        with jsonstream.open_text(path, source.config.storage_options) as stream:
            for number, line in enumerate(stream.read().decode("utf-8", "replace").splitlines(), 1):
                match = _REF_DAVIS.match(line)
                if match is None and line.strip():
                    raise SourceError(f'{path}:{number}: expected `video object "expression"`, found {line[:60]!r}')
                if match is not None:
                    texts[match[1], int(match[2])].hints.append(hint("phrase", match[3]))
    return texts


def youtube_vos_texts(source: Source) -> Texts:
    """`meta.json` (role `meta`) and Ref-YouTube-VOS `meta_expressions.json` (role `expressions`), where configured."""
    texts: defaultdict[tuple[str, int], About] = defaultdict(About)
    for video, entry in _videos(source, "meta"):
        for name, facts in (entry.get("objects") or {}).items():
            if not str(name).isdigit() or not isinstance(facts, dict):
                continue
            about = texts[video, int(name)]
            if isinstance(facts.get("category"), str):
                about.label = spoken(facts["category"])
                about.hints.append(hint("label", about.label))
            frames = facts.get("frames")
            if isinstance(frames, list) and frames:
                about.first_frame = str(frames[0])
    for video, entry in _videos(source, "expressions"):
        expressions = entry.get("expressions") or {}
        for facts in expressions.values() if isinstance(expressions, dict) else []:
            if isinstance(facts, dict) and str(facts.get("obj_id", "")).isdigit() and isinstance(facts.get("exp"), str):
                texts[video, int(facts["obj_id"])].hints.append(hint("phrase", facts["exp"]))
    return texts


def _videos(source: Source, role: str) -> Iterator[tuple[str, dict[str, Any]]]:
    path = source.config.optional_annotation(role)
    if path is None:
        return
    document = jsonstream.load(path, source.config.storage_options)
    videos = document.get("videos") if isinstance(document, dict) else None
    if not isinstance(videos, dict):
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise SourceError(f"{path}: expected an object with `videos`, found {found}")
    yield from ((video, entry) for video, entry in videos.items() if isinstance(entry, dict))


@dataclass(frozen=True)
class Flavour:
    """Where the formats differ: the rate of the original video, whether frames are skipped, the texts."""

    fps: float
    numbered: bool
    texts: Any


def adapter(flavour: Flavour, benchmark_splits: Mapping[str, str]) -> Adapter:
    """The adapter of one palette format. Annotations: the folder of mask folders, or roles `masks`, `videos`, ..."""

    def media(source: Source) -> Iterator[ListedMedia]:
        for video in _masks(source):
            yield _listed(source, video, flavour)

    def regions(source: Source) -> Iterator[pa.Table]:
        yield from batches(_rows(source, flavour), _BATCH_OBJECTS)

    return Adapter(1, media, regions, benchmark_splits=benchmark_splits)


def _masks(source: Source) -> dict[str, list[str]]:
    """Video -> its mask files' URIs, in name order. Raises `SourceError` where there are none."""
    config = source.config
    root = config.annotations if isinstance(config.annotations, str) else config.annotation("masks")
    allowed = _allowed(source)
    videos: dict[str, list[str]] = {}
    for path, item in list_files(root, config.storage_options):
        video = posixpath.basename(posixpath.dirname(path))
        if path.lower().endswith(".png") and video and (allowed is None or video in allowed):
            videos.setdefault(video, []).append(item.uri)
    if not videos:
        raise SourceError(f"{root}: no folders with PNG masks (VIDEO/00000.png)")
    return videos


def _allowed(source: Source) -> set[str] | None:
    path = source.config.optional_annotation("videos")
    if path is None:
        return None
    with jsonstream.open_text(path, source.config.storage_options) as stream:
        return set(stream.read().decode("utf-8", "replace").split())


def _listed(source: Source, video: str, flavour: Flavour) -> ListedMedia:
    folder = source.roots.folder(video)
    if folder is None:
        return listed(source, source.roots.missing_uri(video) + "/", video, "video", missing=True)
    fps = folder_fps(folder, flavour.fps) if flavour.numbered else flavour.fps
    return listed(source, folder.uri, video, "video", num_bytes=folder.num_bytes, etag=folder.etag, fps=fps)


def _rows(source: Source, flavour: Flavour) -> Iterator[dict[str, Any]]:
    texts: Texts = flavour.texts(source)
    named: defaultdict[str, set[int]] = defaultdict(set)
    for video, number in texts:
        named[video].add(number)
    for video, files in _masks(source).items():
        folder = source.roots.folder(video)
        uri = folder.uri if folder else source.roots.missing_uri(video) + "/"
        same = {"uri": uri, "kind": "video", "source_media_id": video}
        places = _places(folder, files)
        tracks: dict[int, dict[int, dict[str, Any]]] = {}
        for file in files:
            stem = _stem(file)
            if stem not in places:
                yield bad(uri, f"{video}/{stem}", "frame_outside", f"{file}: no frame of this name") | same
                continue
            try:
                masks = object_masks(read_bytes(file, source.config.storage_options))
            except (UnitError, ValueError) as error:
                yield bad(uri, f"{video}/{stem}", "bad_record", f"{file}: {error}") | same
                continue
            for number, mask in masks.items():
                tracks.setdefault(number, {})[places[stem]] = mask
        frames = sorted({places[_stem(file)] for file in files if _stem(file) in places})
        for number in sorted({*tracks, *named[video]}):
            about = texts.get((video, number), About())
            yield _row(same, video, number, tracks.get(number, {}), frames, about, places)


def _row(
    same: dict[str, Any], video: str, number: int, masks: dict[int, dict[str, Any]], frames: list[int], about: About,
    places: Mapping[str, int],
) -> dict[str, Any]:  # fmt: skip
    row = {**same, "source_id": f"{video}/{number}", "label": about.label, "hints": about.hints}
    if not masks:
        return row | {"bad": "no_geometry", "message": f"object {number} is named, but is in no mask"}
    row["track"] = [_visible(frame, masks[frame]) if frame in masks else point(frame) for frame in frames]
    first_visible(row, places.get(about.first_frame or ""))
    return row


def _visible(frame: int, mask: dict[str, Any]) -> dict[str, Any]:
    runs, height, _ = rle.runs_of(mask)
    return point(frame, rle.box_of_runs(runs, height), mask)


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path.partition("::")[0]))[0]


def _places(folder: Folder | None, files: list[str]) -> dict[str, int]:
    """Frame name -> its index in the folder; without the folder the masks' own order has to do."""
    names = folder.names if folder else [posixpath.basename(file.partition("::")[0]) for file in files]
    return {posixpath.splitext(name)[0]: index for index, name in enumerate(names)}


def object_masks(data: bytes) -> dict[int, dict[str, Any]]:
    """Object id -> run lengths of a palette (or greyscale) PNG; the index is the id, never the colour.

    Raises `ValueError` for an image in true colour.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("P", "L", "1"):
                raise ValueError(f"masks must be palette or greyscale PNGs, this one is {image.mode}")
            ids: NDArray[np.uint8] = np.asarray(image, np.uint8)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable PNG: {error}") from error
    present = [int(item) for item in np.unique(ids) if item not in (0, VOID)]
    return {number: rle.of_mask(ids == number) for number in present}


DAVIS = adapter(Flavour(DAVIS_FPS, False, davis_texts), {"val": "DAVIS 2017 val; VideoRefer-Bench-Q uses DAVIS"})
YOUTUBE_VOS = adapter(
    Flavour(YOUTUBE_VOS_FPS, True, youtube_vos_texts), {"valid": "YouTube-VOS valid", "test": "YouTube-VOS test"}
)
