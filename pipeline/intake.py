"""The way in: sources to media and regions, and the choice of regions, before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import MEDIA_FINGERPRINT, source_fingerprint
from pipeline.known import Known
from pipeline.session import Session
from pipeline.tables import View
from pipeline.work import Node, commit_keys
from schemas.arrow import arrow_schema, conform
from schemas.region import Selection
from stages.base import fingerprint, with_digest
from stages.ingest.base import SourceConfig
from stages.ingest.sources import ingest as read_regions
from stages.ingest.sources import list_media, source_state
from stages.media.probe import media_rows, missing_rows, probe_units, ref_rows
from stages.select import select

SLICE_ROWS = 1 << 16
SLICE_BYTES = 256 << 20


def ingest(session: Session) -> None:
    """Reads the sources that have changed, probes media that are new, and marks rows that are gone.

    A source whose annotation files and media listing are as they were is not opened.
    """
    before = session.writer.current()
    known = dict(before.sources) if before else {}
    sources = session.config.sources
    states = {source.name: source_state(source) for source in sources}
    read = [source for source in sources if session.retry or known.get(source.name) != states[source.name]]
    if not read:
        session.snapshot(states)
        return
    listings = {source.name: list_media(source) for source in read}
    _probe(session, pa.concat_tables(list(listings.values())))
    now = session.corpus()
    media = media_rows(now.probes, now.all_media)
    _commit_new(session, "media", MEDIA_FINGERPRINT, [media], "media_key")
    dropped = []
    for source in read:
        print_ = source_fingerprint(source.name)
        refs = ref_rows(listings[source.name], now.probes)
        dropped.append(_commit_new(session, "media_refs", print_, [refs], "ref_key"))
        dropped.append(_commit_new(session, "regions", print_, read_regions(source, now.probes), "region_key"))
    unread = [source for source in sources if source not in read]
    session.snapshot(states, tombstones=pl.concat([*dropped, _still_dropped(session.writer.view(), unread)]))


def _probe(session: Session, listed: pa.Table) -> None:
    rows = session.corpus().probes
    if session.retry:
        rows = rows.filter(pl.col("status") != "failed")
    stage = session.stages.probe
    units = probe_units(listed, rows.select("uri_key", "input_digest"))
    absent = missing_rows(units.filter(units["missing"]))
    for start in range(0, len(absent), SLICE_ROWS):
        some = absent.slice(start, SLICE_ROWS)
        session.writer.commit_table(stage.table, fingerprint(stage), some, "uri_key", commit_keys(stage, some))
        session.tally_rows("probe", some)
    present = units.filter(pc.invert(units["missing"]))
    session.run_nodes([Node("probe", stage, stage.table, fingerprint(stage), present)])


def _commit_new(session: Session, table: str, print_: bytes, tables: Iterable[pa.Table], key: str) -> pl.DataFrame:
    """Commits the rows that the table lacks, slice by slice; returns (table, key, input_digest) of those gone.

    A build that is killed has committed whole slices: the next one reads the source again and commits what is missing.
    One slice is written while the next is read, so that memory is bounded by two of them and some bytes a row.
    """
    known = Known(session.writer.view(), table, print_, key)
    with ThreadPoolExecutor(1) as writing:
        waiting: Future[None] | None = None
        for rows in _slices(tables):
            made = rows.take(known.lacks(rows))
            if waiting is not None:
                waiting.result()
            waiting = writing.submit(_commit_slice, session, table, print_, made, key) if len(made) else None
        if waiting is not None:
            waiting.result()
    return known.gone()


def _commit_slice(session: Session, table: str, print_: bytes, rows: pa.Table, key: str) -> None:
    session.writer.commit_table(table, print_, rows, key)
    session.tally_rows("ingest" if table == "regions" else table, rows)


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


def _still_dropped(view: View, unread: list[SourceConfig]) -> pl.DataFrame:
    """The tombstones of sources that were not read again."""
    before = view.tombstones()
    frames = [before.clear()]
    prints = [source_fingerprint(source.name) for source in unread]
    for table in ("media_refs", "regions"):
        if len(before) and prints and view.commits(table, prints):
            keys = view.rows(table, prints, [view.key_field(table)]).collect().to_series().alias("key").to_frame()
            frames.append(before.filter(pl.col("table") == table).join(keys, on="key", how="semi"))
    return pl.concat(frames)


def select_regions(session: Session) -> None:
    """Decides which regions go on. Looks at all of them, so its fingerprint covers the set."""
    now = session.corpus()
    print_ = now.select_fingerprint()
    if len(now.regions) and not session.writer.view().commits("selection", print_):
        chosen = select(now.regions, now.media, session.config.select)
        rows = with_digest(conform(chosen.to_arrow(), arrow_schema(Selection)), Selection)
        session.writer.commit_table("selection", print_, rows, "region_key")
        session.tally_rows("select", rows)
    session.snapshot(fingerprints={"select": print_.hex()})
