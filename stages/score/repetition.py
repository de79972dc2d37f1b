"""Repetition in many texts at once: n-grams and immediate repeats over one flat array of word hashes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

LONGEST_PHRASE = 12
DISTINCT_FROM = 40
SLICE = 50_000

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def repetition(texts: pl.Series, token: str, gram: int) -> pl.DataFrame:
    """The repetition scores of texts (empty ones score null), `gram` words (or characters) long runs.

    Columns: `repeated_4gram`, `repeated_phrase`, `repeated_words` (int64), `distinct_2` (float64, null under
    `DISTINCT_FROM` words), `duplicate_sentences` (int64).
    """
    parts = [_slice(texts.slice(start, SLICE), token, gram) for start in range(0, max(len(texts), 1), SLICE)]
    return pl.concat(parts)


def _slice(texts: pl.Series, token: str, gram: int) -> pl.DataFrame:
    tokens = texts.str.to_lowercase().str.extract_all(token)
    counts = tokens.list.len().cast(pl.Int64).to_numpy()
    words = tokens.explode(empty_as_null=False, keep_nulls=False).hash(0).to_numpy()
    rows = np.repeat(np.arange(len(texts)), counts)
    phrase, added = _immediate(words, rows, len(texts))
    _, distinct = _grams(words, rows, len(texts), 2)
    most, _ = _grams(words, rows, len(texts), gram)
    total = np.maximum(counts - 1, 1)
    scores = pl.DataFrame(
        {
            "repeated_4gram": most,
            "repeated_phrase": phrase,
            "repeated_words": added,
            "distinct_2": distinct / total,
            "duplicate_sentences": _duplicate_sentences(texts),
            "_words": counts,
        }
    )
    known = pl.col("_words") > 0
    long = pl.col("_words") > DISTINCT_FROM
    columns = [
        pl.when(long if name == "distinct_2" else known).then(name).alias(name)
        for name in scores.columns
        if name != "_words"
    ]
    return scores.select(columns)


def _grams(words: Words, rows: Ints, num_rows: int, gram: int) -> tuple[Ints, Ints]:
    """For each row how often its most frequent run of `gram` words occurs, and how many different runs it has."""
    most, distinct = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
    if len(words) < gram:
        return most, distinct
    last = len(words) - gram + 1
    inside = rows[:last] == rows[gram - 1 :]
    mixed = np.zeros(last, np.uint64)
    for offset in range(gram):
        mixed = mixed * _PRIME + words[offset : offset + last]
    mixed, at = mixed[inside], rows[:last][inside]
    # The row joins the hash, so that one sort of plain integers groups by both.
    keyed = ((mixed ^ (mixed >> np.uint64(29))) * _PRIME) >> np.uint64(24)
    keyed |= at.astype(np.uint64) << np.uint64(40)
    keyed.sort()
    if not len(keyed):
        return most, distinct
    starts = np.flatnonzero(np.concatenate(([True], keyed[1:] != keyed[:-1])))
    repeats = np.diff(np.append(starts, len(keyed)))
    owner = (keyed[starts] >> np.uint64(40)).astype(np.int64)
    np.maximum.at(most, owner, repeats)
    return most, np.bincount(owner, minlength=num_rows)


def _immediate(words: Words, rows: Ints, num_rows: int) -> tuple[Ints, Ints]:
    """For each row how often some phrase follows itself at once (1: never), and the most words such repeats add."""
    phrase, added = np.ones(num_rows, np.int64), np.zeros(num_rows, np.int64)
    for period in range(1, min(LONGEST_PHRASE, len(words) - 1) + 1):
        same = (words[period:] == words[:-period]) & (rows[period:] == rows[:-period])
        if not same.any():
            continue
        edges = np.diff(np.concatenate(([0], same.view(np.int8), [0])))
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        # Two neighbouring rows may touch: a run is cut where the row changes, which `same` already did.
        times = (ends - starts) // period
        owner = rows[starts]
        np.maximum.at(phrase, owner, times + 1)
        np.maximum.at(added, owner, times * period)
    return phrase, added


def _duplicate_sentences(texts: pl.Series) -> pl.Series:
    parts = (
        texts.str.to_lowercase()
        .str.replace_all(r"[.!?。！？;；\n]+", "\n")
        .str.replace_all(r"[^\p{L}\p{N}\n]+", " ")
        .str.split("\n")
        .list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars().str.len_chars() > 2))
    )
    return (parts.list.len().cast(pl.Int64) - parts.list.n_unique().cast(pl.Int64)).alias("duplicate_sentences")
