"""Repetition in many texts at once: n-grams and immediate repeats over one flat array of word hashes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

LONGEST_PHRASE = 12
WORDS_FROM = 3
DOUBLED = re.compile(r"\b([^\W\d_]+)\s+\1\b(?!')", re.IGNORECASE)
DISTINCT_FROM = 40
SHORT_TEXT, SAME_FROM = 60, 5
PART_END, PART_WORD = re.compile(r"[.!?;:,—]"), re.compile(r"[^\W_]+")
SMALL = frozenset(
    (
        "a", "an", "the", "is", "are", "was", "were", "be", "been", "it", "its", "this", "that", "these", "which",
        "who", "he", "she", "they", "has", "have", "also", "and", "again", "very", "quite", "really", "so", "indeed",
        "just", "here", "there", "of", "with", "as",
    )
)  # fmt: skip
SLICE = 50_000

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def repetition(texts: pl.Series, token: str, gram: int, light: Sequence[str] = ()) -> pl.DataFrame:
    """The repetition scores of texts (empty ones score null), `gram` words (or characters) long runs.

    Columns: `repeated_4gram`, `repeated_phrase`, `repeated_words` (int64), `distinct_2` (float64, null under
    `DISTINCT_FROM` words), `duplicate_sentences`, `doubled_words` (int64), `distinct_words` (float64). The last two are
    for languages whose function words are known (`light`), null without; `distinct_words` is null under `WORDS_FROM`
    words that are none.
    """
    weightless = pl.Series(light, dtype=pl.String).hash(0).to_numpy()
    parts = [_slice(texts.slice(at, SLICE), token, gram, weightless) for at in range(0, max(len(texts), 1), SLICE)]
    return pl.concat(parts)


def _slice(texts: pl.Series, token: str, gram: int, weightless: Words) -> pl.DataFrame:
    tokens = texts.str.to_lowercase().str.extract_all(token)
    counts = tokens.list.len().cast(pl.Int64).to_numpy()
    words = tokens.explode(empty_as_null=False, keep_nulls=False).hash(0).to_numpy()
    rows = np.repeat(np.arange(len(texts)), counts)
    phrase, added = _immediate(words, rows, len(texts))
    _, distinct = _grams(words, rows, len(texts), 2)
    most, _ = _grams(words, rows, len(texts), gram)
    total = np.maximum(counts - 1, 1)
    heavy, different = _content(words, rows, len(texts), weightless)
    reworded = _reworded(texts, counts, heavy - different) if len(weightless) else np.zeros(len(texts), np.int64)
    scores = pl.DataFrame(
        {
            "repeated_4gram": most,
            "repeated_phrase": phrase,
            "repeated_words": added,
            "distinct_2": distinct / total,
            "duplicate_sentences": np.maximum(_duplicate_sentences(texts).to_numpy(), reworded),
            "doubled_words": _doubled(texts, words, rows) if len(weightless) else np.zeros(len(texts), np.int64),
            "distinct_words": different / np.maximum(heavy, 1),
            "_words": counts,
            "_heavy": heavy,
        }
    )
    known = pl.col("_words") > 0
    worded = known & pl.lit(len(weightless) > 0)
    when = {
        "distinct_2": pl.col("_words") > DISTINCT_FROM,
        "doubled_words": worded,
        "distinct_words": worded & (pl.col("_heavy") >= WORDS_FROM),
    }
    names = [name for name in scores.columns if not name.startswith("_")]
    return scores.select(pl.when(when.get(name, known)).then(name).alias(name) for name in names)


def _content(words: Words, rows: Ints, num_rows: int, weightless: Words) -> tuple[Ints, Ints]:
    """For each row how many of its words are no function words, and how many different ones these are."""
    heavy = ~np.isin(words, weightless)
    kept, owner = words[heavy], rows[heavy]
    _, different = _grams(kept, owner, num_rows, 1)
    return np.bincount(owner, minlength=num_rows).astype(np.int64), different.astype(np.int64)


def _doubled(texts: pl.Series, words: Words, rows: Ints) -> Ints:
    """For each row how many words are written twice with no more than a blank between them.

    Few texts have a word twice in a row, with or without a comma; only these are read.
    """
    doubled = np.zeros(len(texts), np.int64)
    same = (words[1:] == words[:-1]) & (rows[1:] == rows[:-1])
    for row in np.unique(rows[1:][same]).tolist():
        doubled[row] = len(DOUBLED.findall(texts[row]))
    return doubled


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


def _reworded(texts: pl.Series, counts: Ints, repeated: Ints) -> Ints:
    """For each short text how many sentences and clauses say the same as one before, with other small words.

    The same is the same weighty words in the same order, or a fifth more of them. Directions and colours are weighty: a
    man in blue who pushes a man in white is not a man in white who pushes a man in blue. Few short texts repeat as many
    words at all; only these are read.
    """
    found = np.zeros(len(texts), np.int64)
    for row in np.flatnonzero((counts <= SHORT_TEXT) & (repeated >= SAME_FROM // 2)).tolist():
        parts = [PART_WORD.findall(part) for part in PART_END.split(texts[row].lower())]
        said = [weighty for part in parts if len(weighty := [word for word in part if word not in SMALL]) >= SAME_FROM]
        found[row] = sum(any(_says(first, later) for first in said[:place]) for place, later in enumerate(said))
    return found


def _says(first: list[str], second: list[str]) -> bool:
    """Whether one of two runs of words is the other, or lies in it in order with at most a fifth left out."""
    short, long = sorted((first, second), key=len)
    rest = iter(long)
    return 5 * len(short) >= 4 * len(long) and all(word in rest for word in short)


def _duplicate_sentences(texts: pl.Series) -> pl.Series:
    parts = (
        texts.str.to_lowercase()
        .str.replace_all(r"[.!?。！？;；\n]+", "\n")
        .str.replace_all(r"[^\p{L}\p{N}\n]+", " ")
        .str.split("\n")
        .list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars().str.len_chars() > 2))
    )
    return (parts.list.len().cast(pl.Int64) - parts.list.n_unique().cast(pl.Int64)).alias("duplicate_sentences")
