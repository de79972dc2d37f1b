"""Rule 20, duplicates: captions that say what another caption of the corpus says. A function of the whole corpus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from schemas.arrow import arrow_schema, conform
from schemas.caption import Task
from stages.base import with_digest
from stages.draws import drawn
from stages.score.base import ScoreRow
from stages.score.lexicon import TOKEN

CORPUS_VERSION = 2
TABLE = "scores/corpus"
_SLICE = 100_000
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHINGLE = {"en": 3, "zh": 6}

Signatures = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]


class DuplicatesConfig(BaseModel):
    """Near duplicates by MinHash: estimated Jaccard similarity of word runs (3 words, 6 Chinese characters).

    Texts are compared within a task and language. `permutations` is the length of a signature: 64 estimate a
    similarity of 0.85 to about 0.045.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(default=0.85, gt=0, le=1)
    permutations: int = Field(default=64, ge=16, le=256)
    tasks: tuple[Task, ...] = ("brief", "detailed", "video", "stream")
    seed: int = 0


class CorpusScores(ScoreRow):
    """Scores of rule 20 over the corpus, of the tasks compared (null for others).

    Captions of equal text (case, punctuation and spaces aside), and captions near each other, form groups; a rank is a
    caption's place in its group in a seeded order, 0 the first: the policy that wants one of each keeps rank 0.
    `near_similarity` is the estimated similarity to the nearest caption found before it, null in a group of one.
    Source: FILTERS rule 20; MinHash is Broder, "On the resemblance and containment of documents" (1997).
    """

    exact_copies: int | None = None
    exact_rank: int | None = None
    near_copies: int | None = None
    near_rank: int | None = None
    near_similarity: float | None = None


def corpus_settings(config: DuplicatesConfig) -> dict[str, Any]:
    """What the rows depend on beside the captions: goes into their fingerprint with the digest of all captions."""
    return {"version": CORPUS_VERSION, "group": "corpus", "duplicates": config.model_dump(mode="json")}


def corpus_scores(captions: pl.DataFrame, config: DuplicatesConfig) -> pa.Table:
    """The rows of `scores/corpus` for all captions that are ok.

    Needs the columns caption_key, region_key, digest, status, task, language and text. Returns a table with the schema
    of `CorpusScores`, digests filled; a caption's row changes when another caption joins its group, so that the whole
    table is made anew when captions change.
    """
    told = captions.filter((pl.col("status") == "ok") & pl.col("text").is_not_null())
    told = told.select("caption_key", "region_key", "task", "language", "text", input_digest="digest")
    told = told.with_columns(_draw=drawn(told["caption_key"], config.seed)).sort("_draw", "caption_key")
    scored = [told.clear().select("caption_key", *_empty())]
    for (task, language), part in told.group_by("task", "language", maintain_order=True):
        if task in config.tasks:
            scored.append(_group_scores(part, str(language), config))
    rows = told.select("caption_key", "region_key", "input_digest").join(
        pl.concat(scored), on="caption_key", how="left"
    )
    rows = rows.with_columns(status=pl.lit("ok"), attempts=pl.lit(1, pl.Int64)).sort("caption_key")
    return with_digest(conform(rows.to_arrow(), arrow_schema(CorpusScores)), CorpusScores)


def _empty() -> list[pl.Expr]:
    kinds = {"exact_copies": pl.Int64, "exact_rank": pl.Int64, "near_copies": pl.Int64, "near_rank": pl.Int64}
    whole = [pl.lit(None, kind).alias(name) for name, kind in kinds.items()]
    return [*whole, pl.lit(None, pl.Float64).alias("near_similarity")]


def _group_scores(part: pl.DataFrame, language: str, config: DuplicatesConfig) -> pl.DataFrame:
    """Scores of captions of one task and language, in the order in which ranks are given."""
    flat = pl.col("text").str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars()
    texts = part.select("caption_key", flat=flat).with_columns(exact=pl.col("flat").hash(config.seed))
    unique = texts.unique("exact", keep="first", maintain_order=True)
    component, similarity = near_groups(unique["flat"], language, config)
    groups = unique.select("exact", group=pl.Series(component), near_similarity=pl.Series(similarity))
    both = texts.join(groups, on="exact", how="left", maintain_order="left")
    size = pl.len().cast(pl.Int64) - 1
    exact_rank = pl.int_range(pl.len()).over("exact")
    return both.select(
        "caption_key",
        exact_copies=size.over("exact"),
        exact_rank=exact_rank,
        near_copies=size.over("group"),
        near_rank=pl.int_range(pl.len()).over("group"),
        near_similarity=pl.when(exact_rank > 0).then(1.0).otherwise(pl.col("near_similarity")),
    )


def near_groups(
    texts: pl.Series, language: str, config: DuplicatesConfig
) -> tuple[Ints, npt.NDArray[np.float64] | list[float | None]]:
    """The group number of each text, and its estimated similarity to the nearest earlier text found (null: none)."""
    # Imported here: scipy's solvers, which datasketch loads, cost every command line seconds.
    from datasketch import MinHashLSH
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    signatures = np.concatenate([*_signatures(texts, language, config)]) if len(texts) else _no_signatures(config)
    lsh = MinHashLSH(threshold=config.threshold, num_perm=config.permutations)
    one, two = _candidates(signatures, lsh.b, lsh.r)
    similarity = np.concatenate(
        [
            (signatures[one[start : start + _SLICE]] == signatures[two[start : start + _SLICE]]).mean(axis=1)
            for start in range(0, len(one), _SLICE)
        ]
        or [np.zeros(0)]
    )
    near = similarity >= config.threshold
    one, two, similarity = one[near], two[near], similarity[near]
    graph = coo_matrix((np.ones(len(one), np.int8), (one, two)), shape=(len(texts), len(texts)))
    _, component = connected_components(graph, directed=False)
    best = np.full(len(texts), -1.0)
    np.maximum.at(best, two, similarity)
    return component.astype(np.int64), [value if value >= 0 else None for value in best.tolist()]


def _no_signatures(config: DuplicatesConfig) -> Signatures:
    return np.zeros((0, config.permutations), np.uint32)


def _signatures(texts: pl.Series, language: str, config: DuplicatesConfig) -> Iterator[Signatures]:
    from datasketch import MinHash

    for start in range(0, len(texts), _SLICE):
        shingles = _shingles(texts.slice(start, _SLICE), language)
        hashes = MinHash.generator(shingles, num_perm=config.permutations, seed=1 + config.seed, hashfunc=int)
        yield np.stack([minhash.hashvalues for minhash in hashes]).astype(np.uint32)


def _shingles(texts: pl.Series, language: str) -> list[list[int]]:
    """32-bit hashes of the runs of words of each text; a text shorter than a run is one run."""
    size = _SHINGLE[language]
    tokens = texts.str.extract_all(TOKEN["en" if language == "en" else "zh"])
    counts = tokens.list.len().cast(pl.Int64).to_numpy()
    words = np.append(
        tokens.explode(empty_as_null=False, keep_nulls=False).hash(0).to_numpy(), np.zeros(size, np.uint64)
    )
    mixed = np.zeros(len(words) - size, np.uint64)
    for offset in range(size):
        mixed = mixed * _MIX + words[offset : offset + len(mixed)]
    mixed = (mixed ^ (mixed >> np.uint64(31))) * _MIX >> np.uint64(32)
    ends = np.cumsum(counts)
    runs = np.maximum(counts - size + 1, np.minimum(counts, 1))
    return [mixed[end - count : end - count + run].tolist() for end, count, run in zip(ends, counts, runs, strict=True)]


def _candidates(signatures: Signatures, bands: int, rows: int) -> tuple[Ints, Ints]:
    """Pairs of texts that share a band: each with the first of its bucket and with the one before it."""
    pairs = []
    for band in range(bands):
        block = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        mixed = np.zeros(len(block), np.uint64)
        for column in range(block.shape[1]):
            mixed = (mixed ^ block[:, column].astype(np.uint64)) * _MIX
            mixed ^= mixed >> np.uint64(29)
        order = np.argsort(mixed, kind="stable")
        same = np.concatenate(([False], mixed[order][1:] == mixed[order][:-1]))
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        for earlier in (first[later], later - 1):
            pairs.append(np.stack([order[earlier], order[later]], axis=1))
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    unique = np.unique(np.concatenate(pairs).astype(np.int64), axis=0)
    return unique[:, 0], unique[:, 1]
