"""SAM 2's taps of training examples: computed for a batch, or read from a cache, since SAM 2 never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.vision import Features, FrozenSam, Prompt, Taps, shown_frames
from schemas.keys import KEY_BYTES, digest_value

_CHUNK = 256
"""Frames encoded together."""


@dataclass(frozen=True)
class Shown:
    """The taps of one example's shown frames: embed (F, C, h, w), tokens (F, 2, C)."""

    embed: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Sight:
    """What SAM 2 needs of an example: frames as squares (n, S, S, 3) uint8, their original size, the prompt.

    `cache_key` is a digest of all that the taps follow from (see `cache_key`); None when the prompt is drawn anew each
    time. `picture` names the first frame; of images with one name only the first is encoded.
    """

    frames: np.ndarray | None
    size: tuple[int, int]
    prompt: Prompt
    cache_key: str | None
    picture: str | None = None


def fingerprint(sam: FrozenSam, video_frames: int) -> str:
    """What a model brings to its taps: SAM 2's weights, the size of its pictures, the frames shown of a clip."""
    state = hashlib.blake2b(f"{sam.image_size} {video_frames}".encode(), digest_size=KEY_BYTES)
    for name, value in sam.sam.state_dict().items():
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def cache_key(eye: str, key: str, origin: str, prompt: Prompt) -> str:
    """The digest of all that an example's taps follow from: the `fingerprint`, target, frames, files and prompt.

    A cache that outlives a change of any of them is not asked for what it no longer knows.
    """
    mask = None if prompt.mask is None else [list(prompt.mask.shape), np.packbits(prompt.mask).tobytes()]
    points = [
        [float(x), float(y), int(label)] for (x, y), label in zip(prompt.points, prompt.point_labels, strict=True)
    ]
    box = None if prompt.box is None else [float(side) for side in prompt.box]
    return digest_value([eye, key, origin, box, points, mask]).hex()


class FeatureCache:
    """Taps by key, in float16: held in memory on `device`, or as one safetensors file each below `folder`.

    A full-size image takes 2.1 MB, a clip of 16 frames 34 MB; the nano's 33 kB and 0.5 MB.
    """

    def __init__(self, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        self._held: dict[str, Shown] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._held or (self.folder is not None and self._file(key).is_file())

    def get(self, key: str) -> Shown:
        """The taps in float16. Raises KeyError."""
        if key in self._held:
            return self._held[key]
        if self.folder is None or not self._file(key).is_file():
            raise KeyError(key)
        stored = load_file(str(self._file(key)))
        return Shown(stored["embed"], stored["tokens"])

    def put(self, key: str, shown: Shown) -> None:
        """Keeps taps; a file appears whole or not at all."""
        # a copy of its own: a view would keep the whole batch alive
        half = Shown(*(t.to(self.device, torch.float16, copy=True) for t in (shown.embed, shown.tokens)))
        if self.folder is None:
            self._held[key] = half
            return
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{id(shown)}.partial")
        save_file({"embed": half.embed.contiguous(), "tokens": half.tokens.contiguous()}, str(partial))
        partial.replace(file)

    def _file(self, key: str) -> Path:
        name = digest_value(key).hex()
        return Path(self.folder or ".") / name[:2] / f"{name}.safetensors"


Seen = Callable[[Sequence[int], int, Taps], None]
"""Told of every frame that is tracked: which examples, the frame's number, their taps."""


def look(
    sam: FrozenSam,
    sights: Sequence[Sight],
    video: bool,
    frames: int,
    cache: FeatureCache | None = None,
    seen: Seen | None = None,
) -> Shown:
    """The taps of B examples of one kind: embed (B, F, C, h, w), tokens (B, F, 2, C) on SAM 2's device.

    `frames` of a clip are shown (F = 1 for images). What the cache has is not computed; what it lacks is added. With a
    cache the result is rounded as the cache rounds, on the first visit too, so that every epoch sees the same numbers.
    `seen` is told of all frames of what is computed, the shown and the others.
    """
    found: dict[int, Shown] = {}
    missing = []
    for at, sight in enumerate(sights):
        if cache is not None and sight.cache_key is not None and sight.cache_key in cache:
            found[at] = cache.get(sight.cache_key)
        else:
            missing.append(at)
    looking = [sights[at] for at in missing]
    told = _renumbered(seen, missing)
    computed = _clips(sam, looking, frames, told) if video else _images(sam, looking, told)
    for at, shown in zip(missing, computed, strict=True):
        key = sights[at].cache_key
        if cache is not None and key is not None:
            cache.put(key, shown)
            shown = cache.get(key)
        found[at] = shown
    parts = [found[at] for at in range(len(sights))]
    return Shown(*(_stacked([getattr(p, name) for p in parts], sam.device) for name in ("embed", "tokens")))


def _stacked(parts: list[Tensor], device: torch.device) -> Tensor:
    """One tensor in float32 on `device`; parts of one kind travel and grow together, not one by one."""
    if len({(p.dtype, p.device) for p in parts}) > 1:
        parts = [p.to(device).float() for p in parts]
    return torch.stack(parts).to(device).float()


def _renumbered(seen: Seen | None, numbers: Sequence[int]) -> Seen | None:
    """The same listener for a part of the examples, which bear these numbers."""
    if seen is None:
        return None
    return lambda which, frame, taps: seen([numbers[at] for at in which], frame, taps)


def _images(sam: FrozenSam, sights: Sequence[Sight], seen: Seen | None = None) -> list[Shown]:
    if not sights:
        return []
    names = [s.picture or str(at) for at, s in enumerate(sights)]
    first = {name: at for at, name in reversed(list(enumerate(names)))}
    order = {name: at for at, name in enumerate(first)}
    features = _encode(sam, np.concatenate([_pixels(sights[at]) for at in first.values()]))
    taps = sam.prompt(features, [order[name] for name in names], [s.prompt for s in sights], [s.size for s in sights])
    if seen is not None:
        seen(range(len(sights)), 0, taps)
    return [Shown(taps.embed[at : at + 1], taps.tokens[at : at + 1]) for at in range(len(sights))]


def _clips(sam: FrozenSam, sights: Sequence[Sight], frames: int, seen: Seen | None = None) -> list[Shown]:
    """Clips whose prompts are alike are tracked side by side."""
    groups: dict[tuple[bool, int, tuple[int, int] | None], list[int]] = {}
    for at, sight in enumerate(sights):
        mask = sight.prompt.mask
        shape = (mask.shape[0], mask.shape[1]) if mask is not None else None
        groups.setdefault((sight.prompt.box is not None, len(sight.prompt.points), shape), []).append(at)
    out: dict[int, Shown] = {}
    for members in groups.values():
        told = _renumbered(seen, members)
        for at, shown in zip(members, _side_by_side(sam, [sights[at] for at in members], frames, told), strict=True):
            out[at] = shown
    return [out[at] for at in range(len(sights))]


def _side_by_side(sam: FrozenSam, sights: Sequence[Sight], frames: int, seen: Seen | None = None) -> list[Shown]:
    """Shorter clips stand still at their end while longer ones run on: what was seen before does not change by it."""
    counts = [len(_pixels(s)) for s in sights]
    wanted = [shown_frames(count, frames) for count in counts]
    tracker = sam.tracker([s.prompt for s in sights], [s.size for s in sights])
    kept: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in sights]
    for at in range(max(counts)):
        pixels = np.stack([_pixels(s)[min(at, count - 1)] for s, count in zip(sights, counts, strict=True)])
        taps = tracker.step(_encode(sam, pixels))
        if seen is not None:
            here = [which for which, count in enumerate(counts) if at < count]
            seen(here, at, taps[here])
        for which, needed in enumerate(wanted):
            if at in needed:
                kept[which][at] = taps.embed[which], taps.tokens[which]
    return [
        Shown(torch.stack([k[at][0] for at in w]), torch.stack([k[at][1] for at in w]))
        for k, w in zip(kept, wanted, strict=True)
    ]


def _encode(sam: FrozenSam, squares: np.ndarray) -> Features:
    parts = [sam.encode(sam.normalise(squares[at : at + _CHUNK])) for at in range(0, len(squares), _CHUNK)]
    if len(parts) == 1:
        return parts[0]
    levels = range(len(parts[0].maps))
    return Features(
        [torch.cat([p.maps[at] for p in parts]) for at in levels],
        [torch.cat([p.positions[at] for p in parts]) for at in levels],
    )


def _pixels(sight: Sight) -> np.ndarray:
    if sight.frames is None:
        raise ValueError("these taps were said to be cached and are not: clear the feature cache")
    return sight.frames
