"""Describes one target with a trained PAM and writes the overlay."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field

from model.generate import GenerationConfig
from model.inference import PAM, Request
from model.overlay import lines_of, overlay, write_mp4, write_png
from model.stream import Segment, StreamConfig
from model.stream import stream as stream_segments
from model.vision import Prompt
from pipeline.settings import ConfigError
from schemas.base import Box, Record
from schemas.caption import Language, Task
from stages.masks import decode
from stages.media.images import load_image
from stages.media.video import Video, open_video


class CaptionConfig(Record):
    """What is asked. `task` is of images; with `streaming` a video is captioned clip after clip, else as one clip."""

    task: Task = "brief"
    language: Language = "en"
    streaming: StreamConfig | None = None
    max_tokens: int = Field(default=512, ge=1)


def prompt_of(box: str | None, points: list[str], mask: Path | None) -> Prompt:
    """The prompt of the command line's options. Raises `ConfigError` unless exactly one kind is given."""
    try:
        marks = [_point(text) for text in points]
        return Prompt(
            box=cast(Box, tuple(_numbers(box, (4,)))) if box else None,
            points=tuple((x, y) for x, y, _ in marks),
            point_labels=tuple(label for _, _, label in marks),
            mask=np.asarray(load_image(str(mask)).any(axis=2)) if mask else None,
        )
    except ValueError as error:
        raise ConfigError(f"--box, --point, --mask: {error}") from error


def _point(text: str) -> tuple[float, float, int]:
    """`x,y` inside the target, or `x,y,0` outside it."""
    x, y, label = [*_numbers(text, (2, 3)), 1.0][:3]
    if label not in (0, 1):
        raise ValueError(f"{text!r}: the third number is 1 inside the target and 0 outside")
    return x, y, int(label)


def _numbers(text: str, counts: tuple[int, ...]) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if len(values) not in counts:
        needed = " or ".join(map(str, counts))
        raise ValueError(f"{text!r} has {len(values)} numbers, {needed} are needed")
    return values


def load_pam(checkpoint: str, sam: str | None, device: str, config: CaptionConfig) -> PAM:
    """The model behind a folder or Hugging Face id. Raises CheckpointError."""
    return PAM.from_pretrained(checkpoint, sam, device, generation=GenerationConfig(max_new_tokens=config.max_tokens))


def caption_image(pam: PAM, media: Path, prompt: Prompt, config: CaptionConfig, to: Path | None) -> dict[str, Any]:
    """Caption, predicted IoU and overlay path of one target of an image. Raises `ConfigError` for a bad prompt."""
    image = load_image(str(media))
    _check(prompt, (image.shape[0], image.shape[1]), media)
    found = pam.describe_batch([Request(image, prompt, config.task, config.language)])[0]
    path = to or media.with_suffix(".pam.png")
    write_png(path, overlay(image, found.mask, found.text))
    caption = {"text": found.text, "predicted_iou": found.predicted_iou, "lost": not found.mask.any()}
    return {"captions": [caption], "overlay": str(path)}


def caption_video(pam: PAM, media: Path, prompt: Prompt, config: CaptionConfig, to: Path | None) -> dict[str, Any]:
    """Captions (one, or one a clip) and overlay path of one target of a video; the prompt is on its first frame.

    `media` is a file or a folder of frames. Raises `ConfigError` for a bad prompt.
    """
    video = open_video(f"{media}/" if media.is_dir() else str(media))
    try:
        _check(prompt, (video.height, video.width), media)
        whole = StreamConfig(sample_frames=None, clip_frames=len(video))
        settings = (config.streaming or whole).model_copy(update={"language": config.language})
        segments = list(stream_segments(pam, video, prompt, settings))
        path = to or media.with_suffix(".pam.mp4")
        _write(path, video, segments)
    finally:
        video.close()
    captions = [
        {"text": s.text, "lost": s.lost, "first_frame": s.frames[0], "last_frame": s.frames[-1]} for s in segments
    ]
    return {"captions": captions, "overlay": str(path)}


def _write(path: Path, video: Video, segments: list[Segment]) -> None:
    """The frames that were used, each with its mask and its clip's caption, at the video's own pace."""
    lines = lines_of([segment.text for segment in segments], video.width)
    shown = [(at, rle, s.text) for s in segments for at, rle in zip(s.frames, s.masks, strict=True)]
    drawn = (
        overlay(video.frames([at])[0], None if rle is None else decode(rle), text, lines) for at, rle, text in shown
    )
    write_mp4(path, drawn, (video.fps or 24.0) * len(shown) / max(1, len(video)))


def _check(prompt: Prompt, size: tuple[int, int], media: Path) -> None:
    try:
        prompt.check(size)
    except ValueError as error:
        raise ConfigError(f"{media}: {error}") from error
