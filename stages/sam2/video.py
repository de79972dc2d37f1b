"""The fast video path: frames decoded by a thread ahead of the device, encoded in batches, objects tracked together.

No files in between, and memory that does not grow with the video: features live for two blocks of frames, memories
while they are in reach. After each block, while the next one is being encoded, every track is looked over
(`stages.sam2.drift`). One that has drifted from the source's mask on an annotated frame starts anew from there. One
that jumps or loses its object is tried anew from the nearest frame on which the source has a mask; the new try is kept
where it has neither fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from schemas.mask import SEGMENT_FRAMES
from stages.base import UnitError
from stages.masks import MaskArray
from stages.media.video import Video
from stages.refine.config import RefineConfig
from stages.refine.seeds import source_mask
from stages.refine.videos import Found, Start, passes
from stages.sam2.drift import Facts, doubt, facts_of, measured
from stages.sam2.encoder import Encoder, inference
from stages.sam2.forward import normalise
from stages.sam2.predictor import Predictor
from stages.sam2.trace import Tracer
from stages.sam2.tracker import Level, Memory, ObjectMemory, Tracked, Tracker, attender

Step = tuple[bool, int, list[int]]
"""Backwards?, the frame, the objects to follow on it."""
Place = tuple[int, int]
"""A frame and an object's number."""


class FastVideo:
    """Follows objects with a SAM 2 model; `encoder` may be shared with the image path."""

    def __init__(self, model: Predictor, encoder: Encoder, config: RefineConfig) -> None:
        self.model = model
        self.encoder = encoder
        self.config = config
        on_gpu = model.device.type == "cuda"
        self.attend = attender(model, replayed=on_gpu and config.compile != "off")
        self.tracer = Tracer(model.device)

    def follow(self, video: Video, starts: Sequence[Start]) -> Iterator[list[Found]]:
        """Every object on every frame; see `stages.refine.videos.Tracker`."""
        blocks = list(_blocks(list(passes(starts, len(video))), self.config.frame_batch))
        with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as tracing:
            frames = _Frames(self.model, self.encoder, video, [[at for _, at, _ in block] for block in blocks], reading)
            tracks = _Tracks(self, video, starts, frames)
            sent: deque[Future[list[Found]]] = deque()
            broken: UnitError | None = None
            for block in blocks:
                try:
                    frames.enter()
                except UnitError as error:
                    broken = error
                    break
                with inference(self.model.device, self.encoder.dtype):
                    results = tracks.through(block)
                    sent.append(self._send(results, tracks.renewed, video, tracing))
                while len(sent) > 2:
                    yield sent.popleft().result()
            while sent:
                yield sent.popleft().result()
            if broken is not None:
                raise broken

    def drawn(self, results: Sequence[Tracked], places: Sequence[Place]) -> tuple[Tensor, Tensor]:
        """The logits (n, s, s) and object scores (n,) that become masks."""
        return torch.stack([r.logits for r in results]), torch.stack([r.score for r in results])

    def _send(
        self, results: dict[Place, Tracked], renewed: dict[Place, str], video: Video, tracing: ThreadPoolExecutor
    ) -> Future[list[Found]]:
        places, notes = list(results), [renewed.pop(place, None) for place in results]
        low, scores = self.drawn(list(results.values()), places)
        ready, sizes = self.tracer.ready(), [(video.height, video.width)] * len(places)

        def trace() -> list[Found]:
            found = self.tracer.trace(low, scores, sizes, ready=ready)
            return [
                Found(frame, number, one.outline if one.given > 0 and one.outline.box else None, one.given, note)
                for (frame, number), one, note in zip(places, found, notes, strict=True)
            ]

        return tracing.submit(trace)


@dataclass
class _Tracks:
    """The objects of a video, block by block, and what is doubted of them."""

    path: FastVideo
    video: Video
    starts: Sequence[Start]
    frames: _Frames
    renewed: dict[Place, str] = field(default_factory=dict)
    _turned: bool = False

    def __post_init__(self) -> None:
        model = self.path.model
        self.tracker = Tracker(model, len(self.video), self.frames, self.path.attend)
        self._keep = sorted({start.frame for start in self.starts})
        self._last: dict[int, Facts] = {}
        with inference(model.device, self.path.encoder.dtype):
            for number, start in enumerate(self.starts):
                self._prompt(number, start.frame, start.mask)
        self._first = {number: dict(memory.prompted) for number, memory in self.tracker.objects.items()}

    def through(self, block: list[Step]) -> dict[Place, Tracked]:
        """The active objects on the frames of a block, doubts resolved."""
        if not block[0][0] and not self._turned:  # forwards from the prompts, whatever was prompted anew on the way
            self._turned, self._last = True, {}
            for number, prompted in self._first.items():
                self.tracker.objects[number].prompted = dict(prompted)
        results = self._follow(block, None)
        rows, come = _fetch(measured(list(results.values()), [self._source(*place) for place in results]))
        self.frames.ahead()  # the device encodes on while the tracks are looked over
        if come is not None:
            come.synchronize()
        facts = dict(zip(results, map(facts_of, rows.tolist()), strict=True))
        for number in {number for _, number in results}:
            self._look_over(number, block, results, facts)
        for _, frame, _ in block[-1:]:
            self.tracker.forget(frame, self._keep)
        return results

    def _follow(self, block: Sequence[Step], number: int | None) -> dict[Place, Tracked]:
        results: dict[Place, Tracked] = {}
        for reverse, frame, active in block:
            chosen = active if number is None else [n for n in active if n == number]
            for which, tracked in self.tracker.step(frame, chosen, reverse).items():
                results[frame, which] = tracked
        return results

    def _look_over(
        self, number: int, block: list[Step], results: dict[Place, Tracked], facts: dict[Place, Facts]
    ) -> None:
        """Goes through one object's frames in order and renews its track where it is to be doubted."""
        mine = [index for index, (_, frame, _) in enumerate(block) if (frame, number) in results]
        for index in mine:
            frame = block[index][1]
            before, now = self._last.get(number), facts[frame, number]
            why = None if results[frame, number].prompted else doubt(before, now, self.path.config)
            if why is not None:
                again = self._renewed(number, block[index:], before, now)
                if again is not None:
                    results.update(again)
                    some = measured(list(again.values()), [self._source(*place) for place in again])
                    facts.update(zip(again, map(facts_of, some.tolist()), strict=True))
                    self.renewed[frame, number] = why
            self._last[number] = facts[frame, number]

    def _renewed(self, number: int, rest: list[Step], before: Facts | None, now: Facts) -> dict[Place, Tracked] | None:
        """The object on the remaining frames of a block, started anew; None where that is no better."""
        frame, old = rest[0][1], self.tracker.objects[number]
        at = frame if now.agreement is not None else self._nearest(number, frame)
        if at == frame or at not in old.prompted:
            mask = self._known(number, at)
            if mask is None:
                return None
            memory = self._prompt(number, at, mask)
        else:
            memory = old.prompted[at]
        self.tracker.objects[number] = ObjectMemory(prompted={at: memory})  # what it remembers is of something else
        first = self._follow(rest[:1], number)
        if at != frame:
            row = measured(list(first.values()), [None])[0].tolist()
            if doubt(before, facts_of(row), self.path.config) is not None:
                self.tracker.objects[number] = old
                return None
        return first | self._follow(rest[1:], number)

    def _prompt(self, number: int, frame: int, mask: MaskArray) -> Memory:
        self.tracker.prompt_mask(number, frame, torch.from_numpy(mask).to(self.path.model.device))
        return self.tracker.objects[number].prompted[frame]

    def _nearest(self, number: int, frame: int) -> int:
        """The frame nearest to this one on which the source has a mask of the object; its prompt frame is one."""
        start = self.starts[number]
        known = [at for at, point in start.known.items() if point.mask is not None and 0 <= at < len(self.video)]
        return min([start.frame, *known], key=lambda at: abs(at - frame))

    def _known(self, number: int, frame: int) -> MaskArray | None:
        start = self.starts[number]
        if frame == start.frame:
            return start.mask
        return source_mask(start.known[frame].mask, None, self.video.height, self.video.width)

    def _source(self, frame: int, number: int) -> Tensor | None:
        """The source's mask on a frame, at the size of the logits."""
        point = self.starts[number].known.get(frame)
        if point is None or point.mask is None:
            return None
        mask = self._known(number, frame)
        if mask is None:
            return None
        side = self.path.model.image_size // 4
        small = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) >= 0.5
        return torch.from_numpy(small).to(self.path.model.device)


class _Frames:
    """Features of frames: of the block entered last, of the one after it where asked ahead, or of any single frame."""

    def __init__(
        self, model: Predictor, encoder: Encoder, video: Video, blocks: list[list[int]], reading: ThreadPoolExecutor
    ) -> None:
        self.model, self.encoder, self.video, self._reading = model, encoder, video, reading
        self._blocks = deque(blocks)
        self._pixels: Future[Tensor] = reading.submit(self._read, self._blocks[0])
        self._ahead: dict[int, Level] | None = None
        self._levels: dict[int, Level] = {}
        self._single: tuple[int, Level] | None = None

    def __call__(self, frame: int) -> Level:
        """The features of a frame."""
        if frame in self._levels:
            return self._levels[frame]
        if self._single is None or self._single[0] != frame:
            pixels = self._reading.submit(self._read, [frame]).result()
            self._single = (frame, self._encoded(pixels)[0])
        return self._single[1]

    def enter(self) -> None:
        """Goes on to the next block. Raises `UnitError` where its frames cannot be read."""
        self.ahead()
        self._levels, self._ahead = self._ahead or {}, None
        if not self._levels:
            self._pixels.result()

    def ahead(self) -> None:
        """Starts the encoding of the next block, if it can be read, and the reading of the one after it."""
        if self._ahead is not None or not self._blocks or self._pixels.exception() is not None:
            return
        with inference(self.model.device, self.encoder.dtype):
            encoded = self._encoded(self._pixels.result())
        self._ahead = dict(zip(self._blocks.popleft(), encoded, strict=True))
        if self._blocks:
            self._pixels = self._reading.submit(self._read, self._blocks[0])

    def _read(self, indices: list[int]) -> Tensor:
        frames = torch.from_numpy(self.video.frames(indices))
        return frames.pin_memory() if self.model.device.type == "cuda" else frames

    def _encoded(self, pixels: Tensor) -> list[Level]:
        batch = normalise(pixels.to(self.model.device, non_blocking=True).permute(0, 3, 1, 2), self.model.image_size)
        pyramid = self.encoder.pyramid(batch)
        _, features, positions, sizes = self.model._prepare_backbone_features(pyramid)
        return [
            Level([f[:, i : i + 1] for f in features], [p[:, i : i + 1] for p in positions], sizes)
            for i in range(len(batch))
        ]


def _blocks(plan: list[Step], most: int) -> Iterator[list[Step]]:
    """Steps in blocks of one direction and one segment, so that a break in the file costs no segment before it."""
    block: list[Step] = []
    for step in plan:
        if block and (
            len(block) == most or step[0] != block[0][0] or step[1] // SEGMENT_FRAMES != block[0][1] // SEGMENT_FRAMES
        ):
            yield block
            block = []
        block.append(step)
    if block:
        yield block


def _fetch(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values on the CPU, once the event has come."""
    if not values.is_cuda:
        return values, None
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    come = torch.cuda.Event()
    come.record()
    return here, come
