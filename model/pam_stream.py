"""PAM's streaming evaluation: a video a line, its events in order, each with frames, a box on its first and a text.

Record (`eval/example_data/input_full.jsonl` of Perceive-Anything/PAM): `type`, `image_root`, and `annotations` of
`event_id`, `frames`, `gt`, `box` (a list of one xywh box in pixels of the event's first frame). Its script's output is
the same with `pred`, as JSON lines or as one pretty-printed object. A quarter of the events have fewer than the 16
frames that the released model needs; the nearest are shown again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from model.answers import Answer
from model.corpus import CorpusError, Example
from schemas.base import Box
from stages.media.images import load_image


@dataclass(frozen=True)
class Event:
    """One event of a target: its frames' names below the video's folder, its box (xyxy) on the first, its texts.

    `target` is the record's: two records may follow two targets of one video.
    """

    video: str
    target: str
    folder: str
    number: int
    frames: tuple[str, ...]
    box: Box | None
    wanted: str
    predicted: str | None


class StreamCorpus:
    """Events as captions of the task `stream`; a video's frames lie in `media`/NAME, or where the record says."""

    def __init__(self, files: Sequence[Path], media: Path) -> None:
        self._events = [event for file in files for event in read_events(file)]
        self._media = media
        bad = next((e for e in self._events if not e.frames or e.box is None), None)
        if bad is not None:
            raise CorpusError(f"{bad.video}, event {bad.number}: an event needs frames and a box")
        source = ", ".join(file.stem for file in files)
        rows = [(e.video, True, "stream", "en", source, len(e.wanted), e.target, "") for e in self._events]
        names = ["media", "video", "task", "language", "source", "length", "region", "label"]
        self.index = pl.DataFrame(rows, schema=names, orient="row")

    def load(self, number: int) -> Example:
        """The event of row `number`. Raises CorpusError when its first frame is not there."""
        event = self._events[number]
        own = self._media / event.video
        paths = [(own if own.is_dir() else Path(event.folder)) / name for name in event.frames]
        if not paths[0].is_file():
            raise CorpusError(f"{event.video}, event {event.number}: no frame {paths[0]}; name the frames' folder")
        height, width = load_image(str(paths[0])).shape[:2]
        last = self._events[number - 1] if number else None
        return Example(
            key=f"{event.target}-{event.number}",
            video=True,
            count=len(paths),
            size=(height, width),
            read=lambda indices: [load_image(str(paths[at])) for at in indices],
            box=event.box,
            points=[],
            mask=None,
            task="stream",
            language="en",
            text=event.wanted,
            history=last.wanted if last is not None and last.target == event.target else None,
        )


def read_stream_answers(file: Path) -> list[Answer]:
    """The answers in a file of PAM's script. Raises CorpusError for an event without `pred`."""
    answers = []
    for row, event in enumerate(read_events(file)):
        if event.predicted is None:
            raise CorpusError(f"{file}: {event.video}, event {event.number} has no `pred`: this holds no answers")
        facts: dict[str, Any] = {"task": "stream", "language": "en", "source": file.stem, "label": ""}
        texts = {"wanted": event.wanted, "predicted": event.predicted}
        answers.append(Answer(row=row, media=event.video, target=event.target, event_index=row, **facts, **texts))
    return answers


def read_events(file: Path) -> list[Event]:
    """All events of a file, JSON lines or one JSON value. Raises CorpusError naming file and record."""
    return [event for at, record in _records(file) for event in _events(record, f"{file}, record {at}", at)]


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    if not file.is_file():
        raise CorpusError(f"{file}: no such file")
    text = file.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
        yield from enumerate(whole if isinstance(whole, list) else [whole], 1)
    except json.JSONDecodeError:
        for at, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield at, json.loads(line)
                except json.JSONDecodeError as error:
                    raise CorpusError(f"{file}, line {at}: neither JSON lines nor one JSON value: {error}") from error


def _events(record: Any, where: str, number: int) -> Iterator[Event]:
    try:
        folder = str(record.get("image_root", where))
        video = PurePosixPath(folder).name
        for at, event in enumerate(record["annotations"], 1):
            frames = tuple(str(name) for name in event.get("frames", ()))
            if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in frames):
                raise CorpusError(f"{where}, event {at}: a frame's name leaves the video's folder")
            said = event.get("pred")
            yield Event(
                video=video,
                target=f"{video}#{number}",
                folder=folder,
                number=int(event.get("event_id", at)),
                frames=frames,
                box=_box(event),
                wanted=str(event["gt"]).strip(),
                predicted=None if said is None else str(said),
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorpusError(f"{where}: not a record of PAM's streaming evaluation: {error!r}") from error


def _box(event: dict[str, Any]) -> Box | None:
    if not event.get("box"):
        return None
    x, y, width, height = (float(value) for value in event["box"][0])
    return x, y, x + width, y + height
