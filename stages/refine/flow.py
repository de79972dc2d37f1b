"""Following objects without weights: optical flow carries each mask on, GrabCut snaps it to the picture.

The flow is DIS (T. Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016, as OpenCV has it), at a
reduced size. Where the source has a mask or a box on a frame, following starts anew from it. An object that shrinks to
a tenth of what it was counts as gone until the source shows it again: nothing here can recognise it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from stages import masks
from stages.masks import MaskArray
from stages.media.video import Video
from stages.refine.grabcut import GrabCut
from stages.refine.seeds import Pixels, Seed, source_mask
from stages.refine.verdict import measure
from stages.refine.videos import Found, Start, passes

FLOW_SIDE = 256
GONE_SHARE = 0.1
BLOCK = 16


@dataclass
class _State:
    """One object while it is followed: its last mask (None while gone) and the area it had when last sure."""

    mask: MaskArray | None
    area: int


class FlowTracker:
    """Follows objects by optical flow and GrabCut. `side`: GrabCut's working size in pixels."""

    def __init__(self, side: int = 96) -> None:
        self.cutter = GrabCut(side, steps=2)
        self.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def follow(self, video: Video, starts: Sequence[Start]) -> Iterator[list[Found]]:
        """Every object on every frame; see `stages.refine.videos.Tracker`."""
        plan = list(passes(starts, len(video)))
        states: dict[int, _State] = {}
        before: Pixels | None = None
        backwards = None
        for (reverse, frame, active), image in zip(plan, _frames(video, [at for _, at, _ in plan]), strict=True):
            if reverse != backwards:  # a new direction starts from the prompts again
                backwards, before = reverse, None
                states = {n: _State(start.mask, masks.area(start.mask)) for n, start in enumerate(starts)}
                if reverse:
                    before = _grey(video.frames([frame + 1])[0])
            grey = _grey(image)
            moved = None if before is None else self.flow.calc(grey, before, np.zeros((*grey.shape, 2), np.float32))
            before = grey
            yield [self._step(frame, number, starts[number], states[number], image, moved) for number in active]

    def _step(self, frame: int, number: int, start: Start, state: _State, image: Pixels, moved: Any) -> Found:
        point = start.known.get(frame)
        if frame == start.frame:
            state.mask, state.area = start.mask, masks.area(start.mask)
        elif point is not None:
            told = source_mask(point.mask, None, *image.shape[:2])
            if told is None and point.box is not None:
                told = self.cutter.segment(image, Seed(point.box, (), None))
            state.mask, state.area = told, masks.area(told) if told is not None else state.area
        elif state.mask is not None:
            state.mask = self._carried(image, state, moved)
        box = masks.box_of(state.mask) if state.mask is not None else None
        return Found(frame, number, measure(state.mask, box) if state.mask is not None and box else None, None)

    def _carried(self, image: Pixels, state: _State, moved: Any) -> MaskArray | None:
        """The mask of the frame before, moved along the flow and snapped to the picture's edges."""
        assert state.mask is not None
        mask = state.mask if moved is None else _warped(state.mask, moved)
        if masks.area(mask) < max(12, GONE_SHARE * state.area):
            return None
        snapped = self.cutter.segment(image, Seed(None, (), mask))
        return snapped if masks.jaccard(snapped, mask) >= 0.6 else mask


def _frames(video: Video, order: Sequence[int]) -> Iterator[Pixels]:
    for start in range(0, len(order), BLOCK):
        yield from video.frames(order[start : start + BLOCK])


def _grey(image: Pixels) -> Pixels:
    scale = FLOW_SIDE / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 16), max(round(image.shape[0] * scale), 16))
    return np.asarray(cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA), np.uint8)


def _warped(mask: MaskArray, moved: Any) -> MaskArray:
    """The mask where each pixel of the new frame looks back along `moved` (h, w, 2), given at the flow's size."""
    height, width = mask.shape
    scale = np.array([width / moved.shape[1], height / moved.shape[0]], np.float32)
    flow = cv2.resize(moved, (width, height), interpolation=cv2.INTER_LINEAR) * scale
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    at_x, at_y = x + flow[..., 0], y + flow[..., 1]
    return np.asarray(cv2.remap(mask.astype(np.float32), at_x, at_y, cv2.INTER_LINEAR) > 0.5, dtype=np.bool_)
