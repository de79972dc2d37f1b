"""Captions and all their scores in one table, so that another policy reads one file and joins nothing.

The table `scored` is a copy: what it says stands in the tables that it is made of. It is found by the state of the run
(which commits count, under which configuration), which costs no reading, and it carries the digest of the captions and
scores themselves, by which decisions are identified.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from pipeline.engine import Corpus, fingerprints_of
from pipeline.session import Session
from schemas.keys import digest_value
from stages.decide import NEEDED
from stages.score.groups import all_columns

TABLE = "scored"
CONTENT = "content_digest"
_VERSION = 1
_FACTS = frozenset({*NEEDED, "input_digest", "attempts", "reason", "source", "source_label"})
_NO_SOURCE = ("decisions/", "packed", "verdicts", TABLE)
_ELSEWHERE = {"run", "policy", "pack", "runner", "storage_options"}


@dataclass(frozen=True)
class Scored:
    """Captions with their scores, read lazily, and the digest of what they say."""

    rows: pl.LazyFrame
    content: bytes


def scored_print(now: Corpus) -> bytes:
    """The fingerprint of the table for the run as it is: what counts, the configuration, the stages."""
    view = now.view
    counting = {
        table: sorted(commit.name for commit in commits)
        for table, commits in view.tables.items()
        if not table.startswith(_NO_SOURCE)
    }
    snapshot = view.snapshot
    state = {
        "stage": "scored",
        "version": _VERSION,
        "commits": counting,
        "tombstones": snapshot.tombstones if snapshot else None,
        "where": dict(now.where),
        "stages": fingerprints_of(now.config, now.stages),
        "config": now.config.model_dump(mode="json", exclude=_ELSEWHERE),
    }
    return digest_value(state)


def remembered(now: Corpus) -> Scored | None:
    """The table for the run as it is; None where there is none, or something is still to be scored."""
    print_ = scored_print(now)
    if not now.view.commits(TABLE, print_):
        return None
    rows = now.view.rows(TABLE, print_)
    content = rows.select(CONTENT).head(1).collect()[CONTENT][0]
    return Scored(rows.drop(CONTENT), bytes(content))


def remember(session: Session, now: Corpus, asks: Iterable[str] = ()) -> None:
    """Writes the table for the run as it is, unless a score is missing that no teacher is `asked` for."""
    if session.limit is not None or not len(now.captions) or remembered(now) is not None:
        return
    if any(len(step.pending()) for group, step in now.score.items() if group not in asks):
        return
    table = gathered(now.scored, now.scored_digest())
    session.writer.commit_table(TABLE, scored_print(now), table, "caption_key")
    session.snapshot(fingerprints={TABLE: scored_print(now).hex()})


def gathered(scored: pl.DataFrame, content: bytes) -> pa.Table:
    """The table's rows: the facts and scores that policies read, and the digest of it all on each."""
    known = all_columns()
    columns = [name for name in scored.columns if name in _FACTS or name in known]
    table = scored.select(*columns, pl.lit(content).alias(CONTENT)).to_arrow()
    for index, name in enumerate(table.column_names):
        if name.endswith(("_key", "digest")):  # of fixed width, as in other tables
            table = table.set_column(index, name, table[name].cast(pa.binary(16)))
    return table


def read(scored: Scored, columns: Iterable[str]) -> pl.DataFrame:
    """Those of these columns that the table has."""
    known = set(scored.rows.collect_schema().names())
    return scored.rows.select([name for name in columns if name in known]).collect()
