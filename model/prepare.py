"""Everything that training will ask for, made once: token ids of every example, SAM 2's taps of every prompt.

For models so small that reading costs more than learning: afterwards a step touches no file and no picture.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from model.corpus import CorpusError
from model.data import Drawn, Held, MicroBatch, StepData, batches, silent
from model.features import look
from model.plan import Step
from model.progress import log
from model.vision import FrozenSam

_ROWS = {"cpu": (64, 16), "cuda": (256, 192)}
"""Images and clips that go through SAM 2 together."""


def prepare(
    data: StepData, sam: FrozenSam, video_frames: int, rows: Sequence[int], workers: int = 0
) -> tuple[Held, dict[int, str]]:
    """Reads all variants of `rows`, fills the cache of `data` with their taps, and returns the examples.

    Also the rows that cannot be read, and why; others of their kind stand in for them, without a word to learn.
    `workers` processes read and decode. Raises ValueError without a cache or without variants, and CorpusError.
    """
    if data.cache is None or not data.reading.variants:
        raise ValueError("examples are held together with their taps: set prompt_variants and feature_cache")
    began = time.monotonic()
    asked = [(row, variant) for row in rows for variant in range(data.reading.variants)]
    held: Held = {}
    sizes = _ROWS["cuda" if sam.device.type == "cuda" else "cpu"]
    lost: dict[int, str] = {}
    for at, micro in _read(data, asked, sizes, False, workers):
        lost |= micro.lost
        held |= {asked[at + n]: part for n, part in enumerate(zip(micro.sights, micro.ids, micro.labels, strict=True))}
    missing: dict[str, tuple[int, int]] = {}
    for which, (sight, _, _) in held.items():
        if sight.cache_key is None:
            raise ValueError("examples can be held only where all taps are cached: leave cache_images on")
        if sight.cache_key not in data.cache:
            missing.setdefault(sight.cache_key, which)
    unseen: dict[int, str] = {}
    for _, micro in _read(data, list(missing.values()), sizes, True, workers):
        unseen |= micro.lost
        look(sam, micro.sights, micro.video, video_frames, data.cache)
    if unseen:
        lost |= _without(data, held, unseen)
    log.info("%d examples and %d prompts prepared in %.0f s", len(held), len(missing), time.monotonic() - began)
    return held, lost


def _without(data: StepData, held: Held, unseen: dict[int, str]) -> dict[int, str]:
    """Puts others in place of the examples whose pictures cannot be read; says which rows these are, and why."""
    video = data.corpus.index["video"].to_list()
    why = {held[which][0].cache_key: unseen[which[0]] for which in held if which[0] in unseen}
    instead: dict[bool, Drawn] = {}
    for (row, _), example in held.items():
        if example[0].cache_key not in why:
            instead.setdefault(video[row], silent(example))
    lost = {}
    for (row, variant), example in held.items():
        reason = why.get(example[0].cache_key)
        if reason is not None and video[row] not in instead:
            raise CorpusError(f"of {'clips' if video[row] else 'images'} not one can be read; the last: {reason}")
        if reason is not None:
            held[row, variant], lost[row] = instead[video[row]], reason
    return lost


def _read(
    data: StepData, asked: list[tuple[int, int]], sizes: tuple[int, int], pixels: bool, workers: int
) -> Iterator[tuple[int, MicroBatch]]:
    """Examples of one kind together; the number is the place of the first of them in `asked`."""
    video = data.corpus.index["video"].to_list()
    steps, starts, start = [], [], 0
    while start < len(asked):
        kind = video[asked[start][0]]
        alike = takewhile(lambda which: video[which[0]] == kind, asked[start : start + sizes[kind]])  # noqa: B023
        rows, variants = zip(*alike, strict=True)
        steps.append(Step(kind, rows, variants))
        starts.append(start)
        start += len(rows)
    reading = replace(data.reading, pixels=pixels)
    # the cache stays here: workers could not see what is put into it
    reader = StepData(data.corpus, steps, data.tokenizer, reading, *sizes)
    for at, micro in zip(starts, batches(reader, 0, workers), strict=True):
        yield at, micro[0]
