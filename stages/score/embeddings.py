"""Rules 9 and 19 by sentence embeddings: labels that mean the same, captions that repeat their history."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import polars as pl

from schemas.base import Row
from schemas.caption import Language, Task
from schemas.region import Hint
from stages.score.base import Need, Rule, ScoreRow, ScoreStage, ScoreUnit
from stages.score.encoder import EmbeddingsConfig, SentenceEncoder
from stages.score.mentions import plain_label


class EmbeddingUnit(ScoreUnit):
    """A caption, its history, and the source's names of its target."""

    task: Task
    text: str | None = None
    label: str | None = None
    history: str | None = None
    source_label: str | None = None
    hints: list[Hint] = []


class EmbeddingScores(ScoreRow):
    """Scores of rules 9 and 19 by embeddings."""

    label_similarity: float | None = None
    history_similarity: float | None = None


class LabelSimilarity(Rule):
    """Rule 9: the teacher's label against the source's class, by meaning.

    `label_similarity` is the highest cosine of the sentence embeddings of the teacher's label and of the source's
    label or one of its synonyms; null where either is missing. English (MiniLM reads no Chinese).
    Source: FILTERS rule 9; semantic similarity as in the LVIS and PACO protocol of Osprey.
    """

    name = "label_similarity"
    number = 9
    needs: ClassVar[tuple[Need, ...]] = ("text", "embeddings")
    languages: ClassVar[tuple[Language, ...]] = ("en",)
    columns = ("label_similarity",)

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder

    def settings(self) -> dict[str, Any]:
        return self.encoder.config.identity()

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        given = pl.when(pl.col("task") == "label").then(pl.col("text")).otherwise(pl.col("label"))
        rows = units.select("hints", source=plain_label(pl.col("source_label")), given=plain_label(given))
        pairs = []
        for i, row in enumerate(rows.iter_rows(named=True)):
            hinted = [h["text"] for h in row["hints"] or () if h["kind"] == "label" and h["language"] == language]
            names = [name for name in (row["source"], *hinted) if name]
            pairs += [(i, row["given"], name) for name in names if row["given"]]
        best: list[float | None] = [None] * len(units)
        vectors = self.encoder.encode([pair[1] for pair in pairs] + [pair[2] for pair in pairs])
        cosines = np.sum(vectors[: len(pairs)] * vectors[len(pairs) :], axis=1)
        for (i, _, _), cosine in zip(pairs, cosines.tolist(), strict=True):
            known = best[i]
            best[i] = cosine if known is None else max(known, cosine)
        return pl.DataFrame({"label_similarity": pl.Series(best, dtype=pl.Float64)})


class HistorySimilarity(Rule):
    """Rule 19: an event caption that says its history again in other words.

    `history_similarity` is the cosine of the sentence embeddings of the text and of the caption before it; null
    without history. English.
    Source: FILTERS rule 19; repetition from history is a known flaw of PAM's streaming data.
    """

    name = "history_similarity"
    number = 19
    needs: ClassVar[tuple[Need, ...]] = ("text", "embeddings")
    languages: ClassVar[tuple[Language, ...]] = ("en",)
    columns = ("history_similarity",)

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder

    def settings(self) -> dict[str, Any]:
        return self.encoder.config.identity()

    def scores(self, units: pl.DataFrame, language: Language) -> pl.DataFrame:
        rows = units.select("text", before=pl.col("history").str.split("\n").list.last()).with_row_index("row")
        told = rows.drop_nulls(["text", "before"])
        vectors = self.encoder.encode([*told["text"].to_list(), *told["before"].to_list()])
        cosines = np.sum(vectors[: len(told)] * vectors[len(told) :], axis=1)
        scored = told.select("row", history_similarity=pl.Series(cosines.astype(np.float64)))
        return rows.join(scored, on="row", how="left", maintain_order="left").select("history_similarity")


class EmbeddingStage(ScoreStage):
    """Rules 9 and 19 by embeddings; off until `score.embeddings` is configured."""

    group: ClassVar[str] = "embeddings"
    table: ClassVar[str] = "scores/embeddings"
    unit: ClassVar[type[ScoreUnit]] = EmbeddingUnit
    row: ClassVar[type[Row]] = EmbeddingScores
    batch_groups: int = 4096

    def __init__(self, config: EmbeddingsConfig) -> None:
        self._encoder = SentenceEncoder(config)
        super().__init__((LabelSimilarity(self._encoder), HistorySimilarity(self._encoder)))

    def open(self) -> None:
        self._encoder.open()
