"""PAM in use: a picture or a clip and a prompt in, a mask and words out.

pam = PAM.from_pretrained("runs/nano/checkpoint")
pam.describe("photo.jpg", box=(10, 20, 200, 180)).text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model import checkpoint
from model.generate import Answerer, GenerationConfig, Generator
from model.pam import Pam
from model.vision import Features, FrozenSam, Prompt, Taps, load_sam, shown_frames
from prompts.pam import user_text
from schemas.base import Box
from schemas.caption import Language, Task
from schemas.geometry import Rle
from stages import masks
from stages.media.images import load_image

ImageLike = np.ndarray | Image.Image | str | Path
_CHUNK = 8
"""Frames that are decoded and encoded together."""
_PICTURES, _QUESTIONS = 16, 64
"""Pictures of a batch that are encoded together, and questions that are answered together."""


@dataclass(frozen=True)
class Description:
    """What PAM says of one target: the text, its mask (H, W) bool, SAM's estimates of IoU and presence."""

    text: str
    mask: np.ndarray
    predicted_iou: float
    object_score: float


@dataclass(frozen=True)
class ClipDescription:
    """What PAM says of a target in a clip; `masks` holds one run-length mask a frame, None where it is not seen."""

    text: str
    masks: list[Rle | None]


@dataclass(frozen=True)
class Request:
    """One question about one target of one picture."""

    image: ImageLike
    prompt: Prompt
    task: Task = "brief"
    language: Language = "en"


class PAM:
    """A trained PAM with its SAM 2 and tokenizer."""

    def __init__(self, pam: Pam, sam: FrozenSam, tokenizer: Any, generation: GenerationConfig | None = None) -> None:
        if pam.config.perceiver.dim != sam.dim:
            raise ValueError(f"this PAM reads {pam.config.perceiver.dim} channels, its SAM 2 gives {sam.dim}")
        self.pam, self.sam, self.tokenizer = pam.eval(), sam, tokenizer
        self.answer: Answerer = Generator(pam, tokenizer, generation)

    @staticmethod
    def from_pretrained(
        source: str | Path,
        sam: str | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        generation: GenerationConfig | None = None,
    ) -> PAM:
        """A folder written here, or a released PAM (folder or Hugging Face id).

        `sam` overrides the SAM 2 that the checkpoint names; `dtype` defaults to float32 on a CPU and bfloat16 on a
        GPU. Raises `checkpoint.CheckpointError`.
        """
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        dtype = dtype or (torch.bfloat16 if place.startswith("cuda") else torch.float32)
        if (Path(source) / checkpoint.CONFIG).is_file():
            pam, tokenizer = checkpoint.load(source, place, dtype)
        else:
            pam, tokenizer = checkpoint.load_whole(source, place, dtype)
        eye = load_sam(sam or pam.config.sam, place, half_encoder=dtype == torch.bfloat16)
        return PAM(pam, eye, tokenizer, generation)

    def describe(
        self,
        image: ImageLike,
        *,
        box: Box | None = None,
        points: Sequence[tuple[float, float]] = (),
        point_labels: Sequence[int] | None = None,
        mask: np.ndarray | None = None,
        task: Task = "brief",
        language: Language = "en",
    ) -> Description:
        """Mask and words for one target, marked by a box (xyxy pixels), points (default label: inside) or a mask.

        Raises ValueError for a prompt that does not lie on the picture.
        """
        labels = tuple(point_labels) if point_labels is not None else (1,) * len(points)
        prompt = Prompt(box, tuple((float(x), float(y)) for x, y in points), labels, mask)
        return self.describe_batch([Request(image, prompt, task, language)])[0]

    @torch.no_grad()
    def describe_batch(self, requests: Sequence[Request]) -> list[Description]:
        """Mask and words for each request, in order. A picture that several requests share is encoded once.

        Pictures go through SAM 2 `_PICTURES` at a time, the questions through the language model `_QUESTIONS` at a
        time, so that memory does not grow with their number beyond pictures, masks and words.
        """
        pictures, which = _distinct([r.image for r in requests])
        sizes = [(pictures[at].shape[0], pictures[at].shape[1]) for at in which]
        for request, size in zip(requests, sizes, strict=True):
            request.prompt.check(size)
        out: dict[int, Description] = {}
        for start in range(0, len(pictures), _PICTURES):
            some = pictures[start : start + _PICTURES]
            features = self.sam.encode(self.sam.preprocess(some))
            asked = [at for at, picture in enumerate(which) if start <= picture < start + len(some)]
            for first in range(0, len(asked), _QUESTIONS):
                part = asked[first : first + _QUESTIONS]
                shown = [which[at] - start for at in part]
                found = self._answered(features, shown, [requests[at] for at in part], [sizes[at] for at in part])
                out |= dict(zip(part, found, strict=True))
        return [out[at] for at in range(len(requests))]

    def _answered(
        self, features: Features, which: list[int], requests: list[Request], sizes: list[tuple[int, int]]
    ) -> list[Description]:
        taps = self.sam.prompt(features, which, [r.prompt for r in requests], sizes)
        users = [user_text(r.task, r.language) for r in requests]
        texts = self.answer(False, taps.embed[:, None], taps.tokens[:, None], users)
        found = zip(texts, self.sam.full_masks(taps, sizes), taps.iou.tolist(), taps.score.tolist(), strict=True)
        return [Description(*each) for each in found]

    @torch.no_grad()
    def describe_clip(
        self, frames: Any, prompt: Prompt, language: Language = "en", history: str | None = None, task: Task = "video"
    ) -> ClipDescription:
        """Masks and words for the target of a clip; the prompt is on its first frame.

        `frames` is an array (n, H, W, 3) or anything with `len` and `frames(indices)` (see `stages.media.video`). Only
        `video_frames` of them reach the language model; memory does not grow with n beyond the masks.
        """
        count, size = extent(frames)
        prompt.check(size)
        wanted = shown_frames(count, self.pam.config.video_frames)
        kept: dict[int, Taps] = {}
        found: list[Rle | None] = []
        tracker = self.sam.tracker([prompt], [size])
        for at, features in enumerate(self.frame_features(frames, range(count))):
            taps = tracker.step(features)
            found += self.rle(taps, size)
            if at in wanted:
                kept[at] = taps
        return ClipDescription(self.caption_clip([kept[at] for at in wanted], language, history, task), found)

    def caption_clip(
        self, shown: Sequence[Taps], language: Language, history: str | None, task: Task = "stream"
    ) -> str:
        """Words for the target of a clip from the taps (of one target each) of the frames to be shown."""
        embed = torch.stack([t.embed[0] for t in shown])[None]
        tokens = torch.stack([t.tokens[0] for t in shown])[None]
        return self.answer(True, embed, tokens, [user_text(task, language, history)])[0]

    def frame_features(self, frames: Any, indices: Sequence[int]) -> Any:
        """SAM 2's features frame by frame, decoded and encoded a few at a time."""
        for start in range(0, len(indices), _CHUNK):
            some = list(indices[start : start + _CHUNK])
            pictures = frames[some] if isinstance(frames, np.ndarray) else frames.frames(some)
            features = self.sam.encode(self.sam.preprocess(pictures))
            for at in range(len(some)):
                yield features.take(torch.tensor([at], device=self.sam.device))

    def rle(self, taps: Taps, size: tuple[int, int]) -> list[Rle | None]:
        """Run-length masks at full size; None where the target is not on the frame."""
        found = self.sam.full_masks(taps, [size] * len(taps.score))
        return [masks.encode(mask) if mask.any() else None for mask in found]


def extent(frames: Any) -> tuple[int, tuple[int, int]]:
    """Number of frames and (height, width). Raises ValueError for an empty clip."""
    if not len(frames):
        raise ValueError("the clip has no frames")
    if isinstance(frames, np.ndarray):
        return len(frames), (frames.shape[1], frames.shape[2])
    return len(frames), (frames.height, frames.width)


def _distinct(images: Sequence[ImageLike]) -> tuple[list[np.ndarray], list[int]]:
    """The different pictures (same object or same path), and which of them each entry is."""
    pictures: list[np.ndarray] = []
    seen: dict[Any, int] = {}
    which = []
    for image in images:
        name = str(image) if isinstance(image, (str, Path)) else id(image)
        if name not in seen:
            seen[name] = len(pictures)
            pictures.append(as_array(image))
        which.append(seen[name])
    return pictures, which


def as_array(image: ImageLike) -> np.ndarray:
    """Any picture as RGB uint8 (H, W, 3). Raises ValueError for an array of another shape or type."""
    if isinstance(image, (str, Path)):
        return load_image(str(image))
    array = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"a picture is RGB uint8 (H, W, 3), not {array.dtype} {array.shape}")
    return array
