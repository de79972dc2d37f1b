"""Cuts between shots, by PySceneDetect."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from stages.chunk.config import ShotsConfig
from stages.media.video import open_video

_SIDE = 160


def shot_starts(uri: str, fps: float | None, config: ShotsConfig) -> list[float]:
    """The times in seconds at which shots begin, the first at 0.

    Every frame is looked at, a few in memory at a time. Raises `UnitError` as `open_video` does, and `ImportError`
    where PySceneDetect (the extra `shots`) is not installed.
    """
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    video = open_video(uri, fps)
    try:
        detector = AdaptiveDetector(adaptive_threshold=config.threshold)
        found: list[Any] = []
        last = None
        for index, frame in video.iterate(range(len(video)), _SIDE):
            last = FrameTimecode(index, video.fps)
            found += detector.process_frame(last, np.ascontiguousarray(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)))
        if last is not None:
            found += detector.post_process(last)
        frames = sorted({cut.frame_num for cut in found if 0 < cut.frame_num < len(video)})
        return [0.0, *(float(video.times_s[frame]) for frame in frames)]
    finally:
        video.close()
