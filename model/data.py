"""From a corpus and a plan to batches of this rank: decode, draw prompts, encode text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.augment import AugmentConfig, ask, draw_prompt, flip_example
from model.corpus import Corpus, CorpusError
from model.features import FeatureCache, Sight, cache_key
from model.plan import Step
from model.templates import IGNORE, encode_example
from model.vision import squares


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of this rank needs: the sights for SAM 2, the token ids and labels.

    `rows` are the captions' numbers in the corpus; `counts` the frames of each sight while they travel apart. `lost`
    says of captions that could not be read why; another one without loss stands in their place.
    """

    video: bool
    sights: list[Sight]
    ids: list[list[int]]
    labels: list[list[int]]
    rows: list[int]
    counts: list[int] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How examples are read. `image_size` is SAM 2's; `variants` > 0 draws each target's prompt and mirroring from as
    many fixed ones, so that SAM 2's taps can be cached; 0 draws anew at every visit. `cache_images` off does that for
    clips only. Without `pixels` only what has to be said is read, and what SAM 2 would be asked. `eye` is the
    `fingerprint` of the SAM 2 that will look.
    """

    image_size: int
    augment: AugmentConfig
    published_labels: bool = False
    variants: int = 0
    cache_images: bool = True
    pixels: bool = True
    eye: str = ""


Drawn = tuple[Sight, list[int], list[int]]
"""An example as the model gets it: sight, token ids, labels."""

_TRIES = 32
"""Captions all over the corpus that may stand in for a batch of which nothing can be read."""

Held = dict[tuple[int, int], Drawn]
"""Examples read before, by row and variant; their taps are in the cache."""


class StepData(Dataset[list[MicroBatch]]):
    """The micro-batches of one rank, step by step. A pure function of its arguments: workers only read ahead."""

    def __init__(
        self,
        corpus: Corpus,
        steps: list[Step],
        tokenizer: Any,
        reading: Reading,
        micro_images: int,
        micro_clips: int,
        rank: int = 0,
        ranks: int = 1,
        cache: FeatureCache | None = None,
        held: Held | None = None,
    ) -> None:
        self.corpus, self.steps, self.tokenizer, self.reading = corpus, steps, tokenizer, reading
        self.micro = {False: micro_images, True: micro_clips}
        self.rank, self.ranks, self.cache, self.held = rank, ranks, cache, held

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> list[MicroBatch]:
        step, size = self.steps[number], self.micro[self.steps[number].video]
        drawn: list[tuple[Drawn | None, int]] = []
        lost: dict[int, str] = {}
        # as many for each rank, so that all of them meet in as many passes: what is too much has no loss
        for at in range(self.rank, -(-len(step.rows) // self.ranks) * self.ranks, self.ranks):
            which = at % len(step.rows)
            row, example = step.rows[which], None
            try:
                example = self.example(row, step.seeds[which])
            except CorpusError as error:
                lost[row] = str(error)
            drawn.append((silent(example) if example and at >= len(step.rows) else example, row))
        if lost:
            readable = next((example for example, _ in drawn if example), None) or self._any_of(step)
            drawn = [(example or silent(readable), row) for example, row in drawn]
        micro = [_gather(step.video, drawn[at : at + size]) for at in range(0, len(drawn), size)]
        return [replace(micro[0], lost=lost), *micro[1:]]

    def _any_of(self, step: Step) -> Drawn:
        """Something readable of a step's kind, at all ranks alike. Raises CorpusError when nothing is."""
        alike = np.flatnonzero(self.corpus.index["video"].to_numpy() == step.video)
        others = alike[:: max(1, len(alike) // _TRIES)].tolist()
        why: CorpusError | None = None
        for row, seed in [*zip(step.rows, step.seeds, strict=True), *((row, 0) for row in others)]:
            try:
                return self.example(row, seed)
            except CorpusError as error:
                why = error
        raise CorpusError(f"of {'clips' if step.video else 'images'} not one can be read; the last: {why}") from why

    def example(self, row: int, seed: int) -> Drawn:
        """Sight, token ids and labels of a caption; `seed` decides every random choice.

        Raises CorpusError for data that cannot be used.
        """
        augment, variants = self.reading.augment, self.reading.variants
        variant = seed % variants if variants else 0
        if self.held is not None and (row, variant) in self.held:
            return self.held[row, variant]
        rng = np.random.default_rng(seed)
        example = self.corpus.load(row)
        cached = variants > 0 and (example.video or self.reading.cache_images)
        draws = _fixed(f"{example.key}/{variant}") if cached else rng
        # one coin a picture: its regions then share an encoding
        coin = draws if not cached or example.picture is None else _fixed(f"{example.picture}/{variant}")
        if coin.random() < augment.flip:
            example = flip_example(example) or example
        try:
            prompt = draw_prompt(example, augment, draws)
            encoded = encode_example(
                self.tokenizer, ask(example, augment, rng), example.text, self.reading.published_labels
            )
        except ValueError as error:
            raise CorpusError(str(error)) from error
        key = cache_key(self.reading.eye, example.key, example.origin, prompt) if cached else None
        needed = self.reading.pixels and not (key is not None and self.cache is not None and key in self.cache)
        frames = squares(example.read(range(example.count)), self.reading.image_size) if needed else None
        picture = example.picture and f"{example.origin}/{example.picture}"
        return Sight(frames, example.size, prompt, key, picture), encoded.ids, encoded.labels


def silent(example: Drawn) -> Drawn:
    """The same example without a word to learn: it takes part in a step and adds nothing to it."""
    sight, ids, labels = example
    return sight, ids, [IGNORE] * len(labels)


def _fixed(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _gather(video: bool, examples: list[Any]) -> MicroBatch:
    parts = [part for part, _ in examples]
    sights, ids, labels = ([part[at] for part in parts] for at in range(3))
    return MicroBatch(video, sights, ids, labels, [row for _, row in examples])


def batches(data: StepData, start: int, workers: int = 0) -> Iterator[list[MicroBatch]]:
    """The steps of `data` from number `start` on, read ahead by worker processes.

    Raises ValueError for workers beside a cache in memory, which they could not see.
    """
    if workers and data.cache is not None and data.cache.folder is None:
        raise ValueError("a feature cache in memory works with loader_workers: 0; give it a folder for more")
    rest = range(start, len(data))
    if not workers:
        yield from (data[at] for at in rest)
        return
    loader = DataLoader(
        _Posted(data),
        batch_size=None,
        sampler=rest,
        num_workers=workers,
        prefetch_factor=1,
        multiprocessing_context="spawn",
        generator=torch.Generator(),
    )
    for step in loader:
        yield [_received(micro, pixels) for micro, pixels in step]


class _Posted(Dataset[list[tuple[MicroBatch, torch.Tensor]]]):
    """Steps as workers send them: all pictures of a micro-batch in one tensor, which travels by shared memory."""

    def __init__(self, data: StepData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> list[tuple[MicroBatch, torch.Tensor]]:
        posted = []
        for micro in self.data[number]:
            counts = [0 if s.frames is None else len(s.frames) for s in micro.sights]
            frames = [s.frames for s in micro.sights if s.frames is not None]
            pixels = np.concatenate(frames) if frames else np.zeros(0, np.uint8)
            bare = [replace(s, frames=None) for s in micro.sights]
            posted.append((replace(micro, sights=bare, counts=counts), torch.from_numpy(pixels)))
        return posted


def _received(micro: MicroBatch, pixels: torch.Tensor) -> MicroBatch:
    parts = np.split(pixels.numpy(), np.cumsum(micro.counts)[:-1]) if len(pixels) else [None] * len(micro.counts)
    sights = [
        replace(sight, frames=part if count else None)
        for sight, part, count in zip(micro.sights, parts, micro.counts, strict=True)
    ]
    return replace(micro, sights=sights, counts=[])
