"""The way in: sources to media and regions, and the choice of regions, before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import MEDIA_FINGERPRINT, source_fingerprint
from pipeline.forgotten import taken_down
from pipeline.known import SLICE_ROWS, commit_new
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
    # What was taken down is not told anew, not even that it is missing: the stage passes it over.
    forgotten = pc.is_in(units["uri"], value_set=pa.array(sorted(taken_down(session.writer.store).uris), pa.string()))
    missing = pc.and_(units["missing"], pc.invert(forgotten))
    absent = missing_rows(units.filter(missing))
    for start in range(0, len(absent), SLICE_ROWS):
        some = absent.slice(start, SLICE_ROWS)
        session.writer.commit_table(stage.table, fingerprint(stage), some, "uri_key", commit_keys(stage, some))
        session.tally_rows("probe", some)
    present = units.filter(pc.invert(missing))
    session.run_nodes([Node("probe", stage, stage.table, fingerprint(stage), present)])


def _commit_new(session: Session, table: str, print_: bytes, tables: Iterable[pa.Table], key: str) -> pl.DataFrame:
    name = "ingest" if table == "regions" else table
    return commit_new(session.writer, table, print_, tables, key, lambda rows: session.tally_rows(name, rows))


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
    regions = now.scan_regions()
    known = session.writer.view().commits("selection", print_)
    if not known and regions.select(pl.len()).collect().item():
        chosen = select(regions, now.media, session.config.select)
        rows = with_digest(conform(chosen.to_arrow(), arrow_schema(Selection)), Selection)
        session.writer.commit_table("selection", print_, rows, "region_key")
        session.tally_rows("select", rows)
    session.snapshot(fingerprints={"select": print_.hex()})
