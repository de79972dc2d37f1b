"""Describes one target with a trained PAM and writes the overlay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from model.inference import PAM
from model.overlay import overlay, write_mp4, write_png
from model.stream import StreamConfig
from model.stream import stream as stream_segments
from model.vision import Prompt
from pipeline.settings import ConfigError
from schemas.base import Box
from schemas.caption import Language, Task
from schemas.geometry import Rle
from stages.masks import decode
from stages.media.images import load_image
from stages.media.video import open_video


def prompt_of(box: str | None, points: list[str], mask: Path | None) -> Prompt:
    """The prompt of the command line's options. Raises `ConfigError` unless exactly one kind is given."""
    try:
        return Prompt(
            box=cast(Box, tuple(_numbers(box, 4))) if box else None,
            points=tuple(cast(tuple[float, float], tuple(_numbers(point, 2))) for point in points),
            point_labels=(1,) * len(points),
            mask=np.asarray(load_image(str(mask)).any(axis=2)) if mask else None,
        )
    except ValueError as error:
        raise ConfigError(f"--box, --point, --mask: {error}") from error


def _numbers(text: str, count: int) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if len(values) != count:
        raise ValueError(f"{text!r} has {len(values)} numbers, {count} are needed")
    return values


def caption_image(
    checkpoint: str,
    media: Path,
    prompt: Prompt,
    sam: str | None,
    device: str,
    task: str,
    language: str,
    to: Path | None,
) -> dict[str, Any]:
    """Caption, predicted IoU and overlay path of one target of an image."""
    image = load_image(str(media))
    pam = PAM.from_pretrained(checkpoint, sam, device)
    found = pam.describe(
        image,
        box=prompt.box,
        points=prompt.points,
        point_labels=prompt.point_labels or None,
        mask=prompt.mask,
        task=cast(Task, task),
        language=cast(Language, language),
    )
    path = to or media.with_suffix(".pam.png")
    write_png(path, overlay(image, found.mask, found.text))
    return {"captions": [{"text": found.text}], "overlay": str(path)}


def caption_video(
    checkpoint: str,
    media: Path,
    prompt: Prompt,
    sam: str | None,
    device: str,
    language: str,
    streaming: bool,
    to: Path | None,
) -> dict[str, Any]:
    """Captions (one, or one a clip) and overlay path of one target of a video; the prompt is on its first frame."""
    pam = PAM.from_pretrained(checkpoint, sam, device)
    video = open_video(str(media))
    try:
        if streaming:
            segments = list(stream_segments(pam, video, prompt, StreamConfig(language=cast(Language, language))))
        else:
            whole = StreamConfig(sample_frames=None, clip_frames=len(video), language=cast(Language, language))
            segments = list(stream_segments(pam, video, prompt, whole))
        captions = [
            {"text": s.text, "lost": s.lost, "first_frame": s.frames[0], "last_frame": s.frames[-1]} for s in segments
        ]
        shown = [(index, rle, s.text) for s in segments for index, rle in zip(s.frames, s.masks, strict=True)]
        path = to or media.with_suffix(".pam.mp4")
        rate = (video.fps or 24.0) * len(shown) / max(1, len(video))
        write_mp4(path, (_drawn(video, index, rle, text) for index, rle, text in shown), rate)
    finally:
        video.close()
    return {"captions": captions, "overlay": str(path)}


def _drawn(video: Any, index: int, rle: Rle | None, text: str | None) -> np.ndarray[Any, Any]:
    return overlay(video.frames([index])[0], None if rle is None else decode(rle), text)
