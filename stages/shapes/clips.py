"""Writes clips of shapes as a native SA-V folder: H.264 MP4 and `<id>_manual.json`, with the truth beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np

from stages.masks import encode
from stages.shapes.clip import Clip, draw_clip
from stages.shapes.config import ShapesConfig
from stages.shapes.images import ShapesFolder

VIDEO_FPS = 24
ANNOTATION_STEP = 4
"""SA-V annotates every fourth frame: 6 fps on 24 fps video."""


def write_clips(folder: Path, config: ShapesConfig) -> ShapesFolder:
    """Writes `videos/<id>.mp4` and `videos/<id>_manual.json` (SA-V) and `truth.json` into `folder`.

    `truth.json` holds for each clip the camera's drift (pixels a second) and for each masklet its look and its events
    (start and end in seconds, motion words, absence). One config, the same files on one build of libx264.
    """
    media = folder / "videos"
    media.mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {"config": config.model_dump(mode="json"), "clips": {}}
    written = []
    for index in range(config.clips):
        clip = draw_clip(
            (config.seed, 1, index),
            frames=max(round(config.clip_seconds * VIDEO_FPS), ANNOTATION_STEP),
            size=config.clip_size,
            fps=VIDEO_FPS,
            objects=config.clip_objects,
            camera=config.clip_camera,
            occlusion=config.clip_occlusion,
        )
        name = f"shapes_{config.seed:03d}{index:05d}"
        write_mp4(media / f"{name}.mp4", clip.frames, VIDEO_FPS)
        path = media / f"{name}_manual.json"
        path.write_text(json.dumps(_sav(name, clip)) + "\n", encoding="utf-8")
        truth["clips"][name] = _truth(clip)
        written.append(path)
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return ShapesFolder(tuple(written), media, folder / "truth.json")


def write_mp4(
    path: Path,
    frames: Iterable[np.ndarray[Any, Any]],
    fps: int,
    pts: Iterable[int] | None = None,
    crf: int = 16,
    keyframe_every: int = 48,
) -> None:
    """Encodes RGB uint8 frames (H, W, 3; even sides) as H.264 yuv420p.

    `pts` gives each frame's presentation time in units of 1/fps (increasing; the default is 0, 1, 2, ...), which
    makes a video of variable frame rate.
    """
    with av.open(str(path), "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "fast", "threads": "1", "g": str(keyframe_every)}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        times = iter(pts) if pts is not None else None
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = number if times is None else next(times)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _sav(name: str, clip: Clip) -> dict[str, Any]:
    """The annotation record, key by key as SA-V writes it (numbers of the video are floats there)."""
    frames, height, width = clip.frames.shape[:3]
    masks = clip.masks[::ANNOTATION_STEP]
    count = masks.shape[1]
    areas = masks.sum((2, 3))
    visible = areas > 0
    mean_area = [float(a[v].mean()) if v.any() else 0.0 for a, v in zip(areas.T, visible.T, strict=True)]
    return {
        "video_id": name,
        "video_duration": frames / VIDEO_FPS,
        "video_frame_count": float(frames),
        "video_height": float(height),
        "video_width": float(width),
        "video_resolution": float(height * width),
        "video_environment": "Drawn",
        "video_split": "train",
        "masklet": [[encode(mask).model_dump(mode="json") for mask in row] for row in masks],
        "masklet_id": list(range(count)),
        "masklet_size_rel": [area / (height * width) for area in mean_area],
        "masklet_size_abs": mean_area,
        "masklet_size_bucket": [_bucket(area) for area in mean_area],
        "masklet_visibility_changes": [int((v[1:] != v[:-1]).sum()) for v in visible.T],
        "masklet_first_appeared_frame": [float(v.argmax() * ANNOTATION_STEP) for v in visible.T],
        "masklet_frame_count": [len(masks)] * count,
        "masklet_edited_frame_count": [0] * count,
        "masklet_type": ["manual"] * count,
        "masklet_stability_score": [None] * count,
        "masklet_num": count,
    }


def _bucket(area: float) -> str:
    if area < 32**2:
        return "small"
    return "medium" if area < 96**2 else "large"


def _truth(clip: Clip) -> dict[str, Any]:
    return {
        "camera": [round(value, 3) for value in clip.camera],
        "objects": [
            {
                "masklet_id": number,
                "kind": thing.look.kind,
                "colour": thing.look.colour,
                "texture": thing.look.texture,
                "events": [
                    {
                        "start_s": round(event.start_s, 4),
                        "end_s": round(event.end_s, 4),
                        "motion": event.motion,
                        "absent": event.absent,
                        "colour": event.colour,
                    }
                    for event in thing.events
                ],
            }
            for number, thing in enumerate(clip.objects)
        ],
    }
