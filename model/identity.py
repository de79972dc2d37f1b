"""Whether a checkpoint belongs to the run that would go on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from model.config import PamConfig
from model.train_config import TrainConfig
from schemas.keys import KEY_BYTES, digest_value

_ROWS = 100_000


def run_identity(config: TrainConfig, index: pl.DataFrame, tokenizer: Any, pam: PamConfig) -> dict[str, str]:
    """Digests of all that decides which example a step's number means, and what its optimizer state belongs to.

    Learning rates, lengths of the run, micro-batches and numbers of workers are free to change.
    """
    data = config.data
    reading = [
        data.clip_frames,
        data.prompt_variants,
        data.cache_images,
        data.shuffle_captions,
        config.published_labels,
    ]
    settings = {
        "batch": config.batch.model_dump(mode="json"),
        "mixture": config.mixture.model_dump(mode="json"),
        "augment": data.augment.model_dump(mode="json"),
        "tokenizer": tokenizer.get_vocab(),
        "stage": [config.stage, list(config.parts)],
        "reading": reading,
        "model": pam.model_dump_json(),
    }
    return {"corpus": _of_table(index)} | {name: digest_value(value).hex() for name, value in settings.items()}


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what is not as it was."""
    return [name for name, value in now.items() if before.get(name) != value]


def _of_table(index: pl.DataFrame) -> str:
    """The digest of a corpus's captions in order: what they are of, where from, how long."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    columns = index.select("video", "task", "language", "source", "length", "region", "label")
    for rows in columns.iter_slices(_ROWS):
        state.update(rows.write_csv(include_header=False).encode())
    return state.hexdigest()
