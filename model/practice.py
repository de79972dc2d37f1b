"""Practice shards: the shapes world drawn straight into the joined layout, with exact masks and measured captions.

The pipeline makes its shards from annotations, refines and filters; these skip all of that, so that a trainer can be
tried, timed and measured on as many scenes as one likes. The captions are the measured teacher's.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from schemas.base import SCHEMA_VERSION, Record
from schemas.caption import NO_EVENT, Language, Task
from schemas.geometry import FrameMask
from schemas.keys import digest_value
from schemas.sample import Sample, SampleCaption, SampleEvent, SampleMedia, SampleRegion
from stages import masks
from stages.shapes.clip import Clip, draw_clip
from stages.shapes.scene import draw_scene
from stages.teachers.measured import describe
from stages.teachers.protocol import Subject, SubjectEvent

_FIELDS: dict[Task, list[str]] = {
    "label": ["label"],
    "explain": ["label", "definition", "function"],
    "brief": ["brief"],
    "detailed": ["detailed"],
    "video": ["caption"],
    "stream": ["caption"],
}
_FPS = 6.0
_SOURCE = "practice"


class PracticeConfig(Record):
    """How many scenes and clips; `size` is the side of both in pixels, `frames` of a clip at 6 a second."""

    images: int = Field(default=64, ge=0)
    clips: int = Field(default=0, ge=0)
    size: int = Field(default=256, ge=64)
    frames: int = Field(default=32, ge=8)
    per_shard: int = Field(default=500, ge=1)
    languages: tuple[Language, ...] = ("en",)
    seed: int = 0


def write_practice(folder: Path, config: PracticeConfig, processes: int = 1) -> list[Path]:
    """Writes `practice-NNNN.tar` shards below `folder`; one configuration, the same bytes. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [("image", at) for at in range(config.images)] + [("clip", at) for at in range(config.clips)]
    parts = [jobs[at : at + config.per_shard] for at in range(0, len(jobs), config.per_shard)]
    tasks = [(folder / f"practice-{at:04d}.tar", config, part) for at, part in enumerate(parts)]
    if processes == 1:
        return [_write(*task) for task in tasks]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_write, *zip(*tasks, strict=True)))


def _write(path: Path, config: PracticeConfig, jobs: list[tuple[str, int]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for kind, at in jobs:
            for name, data in _image(config, at) if kind == "image" else _clip(config, at):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def _image(config: PracticeConfig, at: int) -> Iterator[tuple[str, bytes]]:
    side = config.size
    scene = draw_scene(np.random.default_rng([config.seed, 10, at]), (side, side))
    key = digest_value([_SOURCE, config.seed, "image", at])
    regions = []
    for number, instance in enumerate(scene.instances):
        subject = _subject(scene.image, instance.mask, instance.look.kind)
        tasks: tuple[Task, ...] = ("label", "explain", "brief", "detailed")
        captions = [_caption(subject, task, language) for language in config.languages for task in tasks]
        facts: dict[str, Any] = {"label": instance.look.kind, "box": instance.box, "mask": masks.encode(instance.mask)}
        regions.append(_region(key, number, captions, **facts))
    media = SampleMedia(media_key=key, uri=f"{at}.jpg", kind="image", width=side, height=side, encoding="jpg")
    yield f"{key.hex()}.jpg", _jpeg(scene.image)
    yield f"{key.hex()}.json", _record(media, regions)


def _clip(config: PracticeConfig, at: int) -> Iterator[tuple[str, bytes]]:
    side, count = config.size, config.frames
    clip = draw_clip((config.seed, 11, at), count, (side, side), _FPS)
    key = digest_value([_SOURCE, config.seed, "clip", at])
    regions = [region for number in range(len(clip.objects)) for region in _followed(key, clip, number, config)]
    times = [float(t) for t in clip.times_s]
    media = SampleMedia(
        media_key=key, uri=f"{at}.mp4", kind="video", width=side, height=side, encoding="jpg",
        num_frames=count, fps=_FPS, frame_indices=list(range(count)), frame_times_s=times,
    )  # fmt: skip
    for number, frame in enumerate(clip.frames):
        yield f"{key.hex()}.{number:03d}.jpg", _jpeg(frame)
    yield f"{key.hex()}.json", _record(media, regions)


def _followed(key: bytes, clip: Clip, number: int, config: PracticeConfig) -> Iterator[SampleRegion]:
    seen = clip.masks[:, number]
    visible = np.flatnonzero(seen.any((1, 2)))
    if not len(visible):
        return
    kind = clip.objects[number].look.kind
    frames = [_frame_mask(at, float(clip.times_s[at]), seen[at]) for at in range(len(seen))]
    events = [_event(at, e, clip) for at, e in enumerate(clip.objects[number].events)]
    told = tuple(SubjectEvent(e.event_index, e.start_s, e.end_s, e.absent, e.motion) for e in events)
    first = int(visible[0])
    captions = []
    for language in config.languages:
        looks = _subject(clip.frames[first], seen[first], kind, told)
        captions.append(_caption(looks, "video", language))
        history: list[str] = []
        for event in events:
            span = [at for at in visible if event.start_frame <= at <= event.end_frame]
            shown = int(span[0]) if span else first
            subject = _subject(clip.frames[shown], seen[shown], kind, told, event.event_index, tuple(history))
            captions.append(_caption(subject, "stream", language, event.event_index))
            history = [captions[-1].text]
    mask = masks.encode(seen[first])
    facts: dict[str, Any] = {"label": kind, "box": masks.box_of(seen[first]), "mask": mask, "frame_index": first}
    yield _region(key, number, captions, **facts, frames=frames, events=events)


def _frame_mask(at: int, time_s: float, mask: np.ndarray) -> FrameMask:
    if not mask.any():
        return FrameMask(frame_index=at, time_s=time_s, visible=False)
    return FrameMask(
        frame_index=at, time_s=time_s, visible=True, box=masks.box_of(mask), mask=masks.encode(mask),
        area_share=float(mask.mean()),
    )  # fmt: skip


def _event(at: int, event: Any, clip: Clip) -> SampleEvent:
    inside = np.flatnonzero((clip.times_s >= event.start_s - 1e-6) & (clip.times_s < event.end_s - 1e-6))
    start, end = (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
    times = {"start_s": event.start_s, "end_s": event.end_s}
    return SampleEvent(
        event_index=at, start_frame=start, end_frame=end, absent=event.absent or not len(inside), motion=event.motion,
        **times,
    )  # fmt: skip


def _subject(
    pixels: np.ndarray,
    mask: np.ndarray,
    kind: str,
    events: tuple[SubjectEvent, ...] = (),
    event_index: int = NO_EVENT,
    history: tuple[str, ...] = (),
) -> dict[str, Any]:
    height, width = mask.shape
    crop = (0.0, 0.0, float(width), float(height))
    return {"label": kind, "hints": (), "width": width, "height": height, "crop": crop} | {
        "pixels": pixels, "mask": mask, "events": events, "event_index": event_index, "history": history
    }  # fmt: skip


def _caption(subject: dict[str, Any], task: Task, language: Language, event_index: int = NO_EVENT) -> SampleCaption:
    answer = describe(Subject(task=task, language=language, **subject), _FIELDS[task])
    joined = f"{answer['label']}. {answer['definition']} {answer['function']}" if task == "explain" else None
    parts = answer if task == "explain" else {}
    history = subject["history"][-1] if subject["history"] else None
    return SampleCaption(
        task=task, language=language, text=joined or next(iter(answer.values())), event_index=event_index,
        history=history, teacher="measured", model="measured", prompt_id="practice", prompt_hash=bytes(16), **parts,
    )  # fmt: skip


def _region(key: bytes, number: int, captions: list[SampleCaption], **facts: Any) -> SampleRegion:
    return SampleRegion(
        region_key=digest_value([key, number]), source=_SOURCE, source_id=str(number), split="train", licence="CC0-1.0",
        captions=captions, **facts,
    )  # fmt: skip


def _record(media: SampleMedia, regions: list[SampleRegion]) -> bytes:
    return Sample(schema_version=SCHEMA_VERSION, media=media, regions=regions).model_dump_json().encode()


def _jpeg(image: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return data.tobytes()
