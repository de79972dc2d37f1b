"""What a run starts with: its corpus, its model and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl
import torch

from model import checkpoint
from model.config import PamConfig
from model.corpus import Corpus, CorpusError, Example, ShardCorpus
from model.jsonl import JsonlCorpus
from model.pam import Pam
from model.qwen import load_llm
from model.tokenizer import load_tokenizer, train_tokenizer
from model.train_config import DataConfig, StartConfig, TrainConfig
from model.world import World

_TOKENIZER_TEXTS = 4000
"""Captions that a tokenizer is trained on, drawn over the whole corpus."""
_ROUND = 64
"""Vocabularies are rounded up to this: matrix units like it."""


class Joined:
    """Several corpora as one, in the order given."""

    def __init__(self, corpora: list[Corpus]) -> None:
        self._corpora = corpora
        columns = ["media", "video", "task", "language", "source", "length", "region", "label"]
        self.index = pl.concat([c.index.select(columns) for c in corpora])
        self._starts = np.cumsum([0, *(len(c.index) for c in corpora)])

    def load(self, number: int) -> Example:
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._corpora[which].load(number - int(self._starts[which]))


class ShuffledCaptions:
    """The control: every caption stands at another target of the same task and language.

    A model trained on it sees the same pictures and the same texts, and can learn nothing of how they belong together.
    """

    def __init__(self, corpus: Corpus, seed: int = 0) -> None:
        self._corpus, self.index = corpus, corpus.index
        rng = np.random.default_rng(seed)
        self._from = np.arange(len(self.index))
        rows = self.index.with_row_index("row")
        for _, group in rows.group_by(["task", "language"], maintain_order=True):
            members = group["row"].to_numpy()
            self._from[members] = members[_derangement(len(members), rng)]

    def load(self, number: int) -> Example:
        from dataclasses import replace

        own, other = self._corpus.load(number), self._corpus.load(int(self._from[number]))
        return replace(own, text=other.text, history=other.history)


def _derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    """A permutation in which (for more than one) nothing stays in place."""
    order = rng.permutation(count)
    out = np.empty(count, dtype=int)
    out[order] = np.roll(order, 1)
    return out


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus that a configuration names. Raises CorpusError."""
    corpora: list[Corpus] = []
    if config.shards:
        corpora.append(ShardCorpus(config.shards, config.storage_options, config.clip_frames))
    if config.jsonl:
        corpora.append(JsonlCorpus(config.jsonl, config.jsonl_root))
    corpus = corpora[0] if len(corpora) == 1 else Joined(corpora)
    return ShuffledCaptions(corpus) if config.shuffle_captions else corpus


def build_model(config: TrainConfig, corpus: Corpus, world: World) -> tuple[Pam, Any]:
    """The model and tokenizer to start from, the same on every worker."""
    start = config.start
    if start.checkpoint is not None:
        return checkpoint.load(start.checkpoint)
    if start.released is not None:
        return checkpoint.load_whole(start.released, dtype=torch.float32)
    if start.llm is not None:
        given = load_tokenizer(start.tokenizer) if start.tokenizer is not None else None
        return load_llm(start.llm, start.fresh or PamConfig(), given)
    tokenizer = _tokenizer(start, corpus)
    if start.fresh is None:
        raise ValueError("start: nothing to start from")
    vocabulary = -(-max(len(tokenizer), int(start.fresh.llm.get("vocab_size", 0))) // _ROUND) * _ROUND
    llm = start.fresh.llm | {"vocab_size": vocabulary}
    return Pam(start.fresh.model_copy(update={"llm": llm})), tokenizer


def _tokenizer(start: StartConfig, corpus: Corpus) -> Any:
    if start.tokenizer is not None:
        return load_tokenizer(start.tokenizer)
    count = len(corpus.index)
    rows = range(0, count, max(1, count // _TOKENIZER_TEXTS))
    return train_tokenizer(_texts(corpus, rows), start.vocab_size)


def _texts(corpus: Corpus, rows: Iterable[int]) -> Iterator[str]:
    """The captions of these rows; what cannot be read is met again, and counted, in training."""
    for row in rows:
        with suppress(CorpusError):
            yield corpus.load(row).text
