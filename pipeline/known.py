"""Committing what a table lacks, slice by slice: ingest reads a source of millions of rows in bounded memory.

Which rows are committed already is known in a few bytes a row, so that a killed build goes on where it was, and a
source that is read again adds what is new and names what is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tables import View, Writer

SLICE_ROWS = 1 << 16
SLICE_BYTES = 256 << 20

Hashes = NDArray[np.uint64]
_GONE = {"table": pl.String, "key": pl.Binary, "input_digest": pl.Binary}


def commit_new(
    writer: Writer,
    table: str,
    print_: bytes,
    tables: Iterable[pa.Table],
    key: str,
    tally: Callable[[pa.Table], None] = lambda rows: None,
) -> pl.DataFrame:
    """Commits the rows that the table lacks; returns (table, key, input_digest) of the committed ones gone since.

    `tally` is told each slice. One slice is written while the next is read.
    """
    known = Known(writer.view(), table, print_, key)

    def commit(rows: pa.Table) -> None:
        writer.commit_table(table, print_, rows, key)
        tally(rows)

    with ThreadPoolExecutor(1) as writing:
        waiting: Future[None] | None = None
        for rows in _slices(tables):
            lacks = known.lacks(rows)
            made = rows if len(lacks) == len(rows) else rows.take(lacks)
            if waiting is not None:
                waiting.result()
            waiting = writing.submit(commit, made) if len(made) else None
        if waiting is not None:
            waiting.result()
    return known.gone()


def _slices(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables put together to pieces of about `SLICE_ROWS` rows or `SLICE_BYTES`, whichever comes first."""
    gathered: list[pa.Table] = []
    for rows in tables:
        gathered.append(rows)
        if sum(map(len, gathered)) >= SLICE_ROWS or sum(part.nbytes for part in gathered) >= SLICE_BYTES:
            yield pa.concat_tables(gathered)
            gathered = []
    if gathered:
        yield pa.concat_tables(gathered)


class Known:
    """The rows that a view shows of a table and fingerprint, as hashes; remembers which of them have come again.

    A row is held by two 64-bit hashes, of its key and input digest and of these with its digest; it passes for
    committed only where both agree.
    """

    def __init__(self, view: View, table: str, print_: bytes, key: str) -> None:
        self._view, self._table, self._print, self._key = view, table, print_, key
        hashed = pl.DataFrame(schema={"subject": pl.UInt64, "content": pl.UInt64})
        if view.commits(table, print_):
            hashed = view.rows(table, print_, [key, "input_digest", "digest"]).select(_hashes(key)).collect()
        order = np.argsort(hashed["subject"].to_numpy())
        self._subjects: Hashes = hashed["subject"].to_numpy()[order]
        self._contents: Hashes = hashed["content"].to_numpy()[order]
        self._again = np.zeros(len(hashed), bool)

    def lacks(self, rows: pa.Table) -> pa.Array:
        """The numbers of the rows that are not committed, in order; the others are remembered as come again."""
        if not len(self._subjects):
            return pa.array(np.arange(len(rows)))
        columns = rows.select([self._key, "input_digest", "digest"])
        hashed = pl.DataFrame(pl.from_arrow(columns)).select(_hashes(self._key))
        subjects, contents = hashed["subject"].to_numpy(), hashed["content"].to_numpy()
        at = np.minimum(np.searchsorted(self._subjects, subjects), len(self._subjects) - 1)
        same = self._subjects[at] == subjects
        self._again[at[same]] = True
        return pa.array(np.flatnonzero(~(same & (self._contents[at] == contents))))

    def gone(self) -> pl.DataFrame:
        """(table, key, input_digest) of the committed rows that have not come again."""
        missing = pl.Series("subject", self._subjects[~self._again])
        if not len(missing):
            return pl.DataFrame(schema=_GONE)
        rows = self._view.rows(self._table, self._print, [self._key, "input_digest"])
        left = rows.filter(_subject(self._key).is_in(missing.implode())).rename({self._key: "key"})
        return left.select(pl.lit(self._table).alias("table"), "key", "input_digest").collect()


def _subject(key: str) -> pl.Expr:
    return pl.col(key).hash(0) ^ pl.col("input_digest").hash(1)


def _hashes(key: str) -> list[pl.Expr]:
    return [_subject(key).alias("subject"), (_subject(key) ^ pl.col("digest").hash(2)).alias("content")]
