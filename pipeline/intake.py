"""The way in: sources to media and regions, and the choice of regions, before anything is spent."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from pipeline.engine import MEDIA_FINGERPRINT, source_fingerprint
from pipeline.session import Session
from pipeline.tables import View
from pipeline.work import Node
from schemas.arrow import arrow_schema, conform
from schemas.region import Selection
from stages.base import fingerprint, with_digest
from stages.ingest.base import SourceConfig
from stages.ingest.sources import ingest as read_regions
from stages.ingest.sources import list_media, source_state
from stages.media.probe import media_rows, probe_units, ref_rows
from stages.select import select


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
    _commit_new(session, "media", MEDIA_FINGERPRINT, media, "media_key")
    dropped = []
    for source in read:
        print_ = source_fingerprint(source.name)
        refs = ref_rows(listings[source.name], now.probes)
        dropped.append(_commit_new(session, "media_refs", print_, refs, "ref_key"))
        regions = pa.concat_tables(list(read_regions(source, now.probes)))
        dropped.append(_commit_new(session, "regions", print_, regions, "region_key"))
    unread = [source for source in sources if source not in read]
    session.snapshot(states, tombstones=pl.concat([*dropped, _still_dropped(session.writer.view(), unread)]))


def _probe(session: Session, listed: pa.Table) -> None:
    rows = session.corpus().probes
    if session.retry:
        rows = rows.filter(pl.col("status") != "failed")
    stage = session.stages.probe
    units = probe_units(listed, rows.select("uri_key", "input_digest"))
    session.run_nodes([Node("probe", stage, stage.table, fingerprint(stage), units)])


def _commit_new(session: Session, table: str, print_: bytes, rows: pa.Table, key: str) -> pl.DataFrame:
    """Commits the rows that the table lacks; returns (table, key, input_digest) of those that `rows` has no more."""
    view, on = session.writer.view(), [key, "input_digest"]
    new = pl.DataFrame(pl.from_arrow(rows.select([*on, "digest"]))).with_row_index("row")
    old = pl.DataFrame(schema={key: pl.Binary, "input_digest": pl.Binary, "digest": pl.Binary})
    if view.commits(table, print_):
        old = view.rows(table, print_, [*on, "digest"]).collect()
    fresh = new.join(old, on=[*on, "digest"], how="anti").sort("row")["row"]
    if len(fresh):
        made = rows.take(fresh.to_arrow())
        session.writer.commit_table(table, print_, made, key)
        session.tally_rows("ingest" if table == "regions" else table, made)
    gone = old.join(new, on=on, how="anti").rename({key: "key"})
    return gone.select(pl.lit(table).alias("table"), "key", "input_digest")


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
