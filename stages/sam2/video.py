"""The fast video path: frames decoded by a thread ahead of the device, encoded in batches, objects tracked together.

No files in between, and memory that does not grow with the video: features live for a block of frames, memories while
they are in reach. On frames where the source has a mask, a track that has drifted from it is prompted anew with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.masks import MaskArray
from stages.media.video import Video
from stages.refine.config import RefineConfig
from stages.refine.seeds import source_mask
from stages.refine.videos import Found, Start, passes
from stages.sam2.encoder import Encoder, inference
from stages.sam2.enlarge import Sent, send_enlarged
from stages.sam2.forward import normalise
from stages.sam2.predictor import Predictor
from stages.sam2.tracker import Level, Tracked, Tracker

ENLARGED_AT_ONCE = 64


class FastVideo:
    """Follows objects with a SAM 2 model; `encoder` may be shared with the image path."""

    def __init__(self, model: Predictor, encoder: Encoder, config: RefineConfig) -> None:
        self.model = model
        self.encoder = encoder
        self.config = config

    def follow(self, video: Video, starts: Sequence[Start]) -> Iterator[list[Found]]:
        """Every object on every frame; see `stages.refine.videos.Tracker`."""
        plan = list(passes(starts, len(video)))
        frames = _Frames(self.model, self.encoder, video, [frame for _, frame, _ in plan], self.config.frame_batch)
        tracker = Tracker(self.model, len(video), frames)
        keep = sorted({start.frame for start in starts})
        sent: deque[tuple[list[tuple[int, int]], Sent]] = deque()
        places: list[tuple[int, int]] = []
        results: list[Tracked] = []
        try:
            for number, start in enumerate(starts):
                with inference(self.model.device, self.encoder.dtype):
                    tracker.prompt_mask(number, start.frame, torch.from_numpy(start.mask).to(self.model.device))
            first = {number: dict(memory.prompted) for number, memory in tracker.objects.items()}
            frames.begin()
            turned = False
            for reverse, frame, active in plan:
                if not reverse and not turned:  # forwards from the prompts, whatever was prompted anew on the way back
                    turned = True
                    for number, prompted in first.items():
                        tracker.objects[number].prompted = dict(prompted)
                with inference(self.model.device, self.encoder.dtype):
                    tracked = tracker.step(frame, active, reverse)
                    self._check(tracker, tracked, starts, frame, video)
                    tracker.forget(frame, keep)
                    places += [(frame, number) for number in tracked]
                    results += tracked.values()
                    if len(results) >= ENLARGED_AT_ONCE:
                        sent.append((places, self.send(results, places, video)))
                        places, results = [], []
                while len(sent) > 1:
                    yield _found(*sent.popleft())
            if results:
                sent.append((places, self.send(results, places, video)))
            while sent:
                yield _found(*sent.popleft())
        finally:
            frames.close()

    def send(self, results: Sequence[Tracked], places: Sequence[tuple[int, int]], video: Video) -> Sent:
        """The masks of `results` at the video's size, on their way to the CPU; `places`: their frames, objects."""
        low, scores = torch.stack([r.logits for r in results]), torch.stack([r.score for r in results])
        return send_enlarged(low, scores, video.height, video.width)

    def _check(
        self, tracker: Tracker, tracked: dict[int, Tracked], starts: Sequence[Start], frame: int, video: Video
    ) -> None:
        """Prompts anew what has drifted from the source's mask on this frame."""
        for number, result in tracked.items():
            point = starts[number].known.get(frame)
            if result.prompted or point is None or point.mask is None:
                continue
            source = source_mask(point.mask, None, video.height, video.width)
            if source is None or self._agreement(result, source) >= self.config.redetect:
                continue
            logits = tracker.prompt_mask(number, frame, torch.from_numpy(source).to(self.model.device))
            tracker.restart(number, frame)  # what it remembers is of something else
            tracked[number] = Tracked(logits, torch.ones_like(result.score), True)

    def _agreement(self, result: Tracked, source: MaskArray) -> float:
        side = result.logits.shape[-1]
        whole = torch.from_numpy(source).to(result.logits.device)[None, None].float()
        small = F.interpolate(whole, size=(side, side), mode="area")[0, 0] >= 0.5
        inside = (result.logits > 0) & (result.score > 0)
        union = (inside | small).sum()
        return float((inside & small).sum() / union.clamp(min=1)) if union > 0 else 1.0


class _Frames:
    """Features of frames in a known order: a block of frames is encoded at a time, the next one decoded meanwhile."""

    def __init__(self, model: Predictor, encoder: Encoder, video: Video, order: list[int], block: int) -> None:
        self.model, self.encoder, self.video = model, encoder, video
        self._blocks = deque(order[start : start + block] for start in range(0, len(order), block))
        self._levels: dict[int, Level] = {}
        self._pool = ThreadPoolExecutor(1)  # one thread alone reads the video
        self._next = self._pool.submit(self._pixels, self._blocks[0])
        self._single: tuple[int, Level] | None = None
        self._in_order = False

    def __call__(self, frame: int) -> Level:
        """The features of a frame: of the block under way, or of any other frame, encoded by itself."""
        if frame in self._levels:
            return self._levels[frame]
        if self._in_order and any(frame in block for block in self._blocks):
            self._advance(frame)
            return self._levels[frame]
        if self._single is None or self._single[0] != frame:
            pixels = self._pool.submit(self._pixels, [frame]).result()
            self._single = (frame, self._encoded(pixels)[0])
        return self._single[1]

    def begin(self) -> None:
        """From here on frames are asked for in order; before it, prompts ask for any."""
        self._in_order = True

    def _advance(self, frame: int) -> None:
        """Encodes the next block that holds `frame`; frames on which every object was prompted are never asked for."""
        while True:
            block, pixels = self._blocks.popleft(), self._next.result()
            if self._blocks:
                self._next = self._pool.submit(self._pixels, self._blocks[0])
            if frame in block:
                break
        self._levels = dict(zip(block, self._encoded(pixels), strict=True))

    def _pixels(self, indices: list[int]) -> Tensor:
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

    def close(self) -> None:
        """Ends the reading thread; the video is then free."""
        self._pool.shutdown(cancel_futures=True)


def _found(places: list[tuple[int, int]], sent: Sent) -> list[Found]:
    return [
        Found(frame, number, mask if score > 0 and box is not None else None, score, box)
        for (frame, number), (mask, box, _, score) in zip(places, sent.received(), strict=True)
    ]
