"""The order of training: which captions make up which step, for every epoch, as a pure function of seed and data.

A step is a global batch of one kind (images or clips). Ranks take every n-th of its captions, so that any number of
workers trains on the same steps, and a run resumes by the number of its next step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from pydantic import Field

from schemas.base import Record

_POOL = 16
_STEP = 1.2
"""Of `_POOL` batches the captions are sorted by length together: padding falls, order stays random. Lengths within a
factor of `_STEP` count as one: by their exact length texts would be sorted by their words."""


class MixtureConfig(Record):
    """Weights by task, language and source, multiplied; a name that is not given has weight 1.

    Weight 2 shows a caption twice an epoch, 0.5 every second epoch on average, 0 never.
    """

    tasks: dict[str, float] = {}
    languages: dict[str, float] = {}
    sources: dict[str, float] = {}


class BatchConfig(Record):
    """`images` captions of images, or `clips` captions of clips, make a global batch; `seed` fixes the order."""

    images: int = Field(default=1024, ge=1)
    clips: int = Field(default=1024, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One global batch: rows of the corpus's index, and for each the number that seeds its augmentation."""

    video: bool
    rows: tuple[int, ...]
    seeds: tuple[int, ...]


def plan_epoch(
    index: pl.DataFrame,
    epoch: int,
    batches: BatchConfig,
    mixture: MixtureConfig,
    hard_negatives: float = 0.0,
    count: int | None = None,
) -> list[Step]:
    """The steps of an epoch in order. The last batch of a kind is filled up from its beginning.

    Epochs differ by a step or so where weights are no whole numbers. `count` makes it so many: what is too much is left
    out, what lacks is taken from the beginning; so the number of a step tells its epoch.

    Raises ValueError when the mixture leaves nothing.
    """
    rng = np.random.default_rng([batches.seed, epoch])
    drawn = _draw(index, mixture, rng)
    if not len(drawn):
        raise ValueError("the mixture's weights leave no caption: raise a weight or name other shards")
    video, length = index["video"].to_numpy(), index["length"].to_numpy()
    steps: list[Step] = []
    for kind, size in ((False, batches.images), (True, batches.clips)):
        rows = drawn[video[drawn] == kind]
        rows = _grouped(rows, length, size)
        if hard_negatives and not kind:
            rows = _with_neighbours(index, rows, hard_negatives, rng)
        steps += _cut(rows, kind, size, rng)
    order = rng.permutation(len(steps))
    return [steps[at] for at in (order if count is None else np.resize(order, count))]


def weights(index: pl.DataFrame, mixture: MixtureConfig) -> np.ndarray:
    """The weight of every row: how often it is shown in an epoch, on average."""
    weight = np.ones(len(index))
    for column, table in (("task", mixture.tasks), ("language", mixture.languages), ("source", mixture.sources)):
        if table:
            weight *= index[column].replace_strict(table, default=1.0, return_dtype=pl.Float64).to_numpy()
    return weight


def _draw(index: pl.DataFrame, mixture: MixtureConfig, rng: np.random.Generator) -> np.ndarray:
    """Row numbers, shuffled, each as often as its weight says."""
    weight = weights(index, mixture)
    times = np.floor(weight).astype(int)
    times += rng.random(len(index)) < weight - times
    return rng.permutation(np.repeat(np.arange(len(index)), times))


def _grouped(rows: np.ndarray, length: np.ndarray, size: int) -> np.ndarray:
    """Pools of `_POOL` batches sorted by text length, so that a batch holds texts of similar length."""
    pool, rough = size * _POOL, np.floor(np.log1p(length) / np.log(_STEP))
    pools = [rows[start : start + pool] for start in range(0, len(rows), pool)]
    return np.concatenate([p[np.argsort(rough[p], kind="stable")] for p in pools]) if pools else rows


def _with_neighbours(index: pl.DataFrame, rows: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Behind a share of the label captions, that of another region of the same picture that is called otherwise."""
    labels = index.with_row_index("row").filter((pl.col("task") == "label") & ~pl.col("video"))
    groups = {key: list(zip(g["row"], g["label"], strict=True)) for key, g in labels.group_by("media", "language")}
    places = list(zip(index["media"], index["language"], strict=True))
    label, task = index["label"].to_list(), index["task"].to_list()
    out: list[int] = []
    for row in rows.tolist():
        out.append(row)
        if task[row] != "label" or rng.random() >= share:
            continue
        others = [other for other, name in groups.get(places[row], []) if name != label[row]]
        if others:
            out.append(others[int(rng.integers(len(others)))])
    return np.array(out, dtype=rows.dtype)


def _cut(rows: np.ndarray, video: bool, size: int, rng: np.random.Generator) -> list[Step]:
    steps = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        part = np.concatenate([part, np.resize(rows, size - len(part))]) if len(part) < size else part
        seeds = rng.integers(0, 2**31, len(part))
        steps.append(Step(video, tuple(part.tolist()), tuple(seeds.tolist())))
    return steps
