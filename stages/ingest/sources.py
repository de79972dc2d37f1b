"""The entry of ingest: which formats there are, what media a source lists, and its region rows.

    listed = list_media(config)                      # nothing opened but the annotations
    probes = ...ProbeStage over probe_units(listed)  # stages.media.probe
    for rows in ingest(config, probes): ...          # one row an annotation record, in file order

`source_state` is a digest of all that the outcome depends on; where it is as it was, none of this is run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import polars as pl
import pyarrow as pa

from schemas.arrow import arrow_schema
from schemas.keys import digest_value
from schemas.region import Region
from stages.ingest import (
    a2d,
    bensmot,
    coco,
    coco_family,
    openimages,
    palette,
    pam_data,
    refer,
    reftext,
    regions,
    rexverse,
    sav,
    tubes,
    visual_genome,
    youtube_vis,
)
from stages.ingest.base import Adapter, Source, SourceConfig, SourceError
from stages.ingest.finish import Finisher
from stages.ingest.listing import MediaRoots, list_files
from stages.media.probe import ListedMedia

_LISTING_ROWS = 8192
FINISH_VERSION = 1
"""Changes when the rows that `Finisher` makes of the same records do."""


def formats() -> Mapping[str, Adapter]:
    """Every format that `format:` of a source may name."""
    return {
        "coco": coco.adapter(coco.COCO),
        "lvis": coco.adapter(coco.LVIS, benchmark_splits={"val": "PACO/LVIS open-vocabulary (Osprey's 1k)"}),
        "objects365": coco_family.OBJECTS365,
        "v3det": coco_family.V3DET,
        "paco": coco_family.PACO,
        "openimages": openimages.ADAPTER,
        "visual_genome": visual_genome.ADAPTER,
        "refer": refer.REFER,
        "grefcoco": refer.GREFCOCO,
        "google_refexp": refer.GOOGLE_REFEXP,
        "reftext": reftext.ADAPTER,
        "regions": regions.ADAPTER,
        "sav": sav.ADAPTER,
        "davis": palette.DAVIS,
        "youtube_vos": palette.YOUTUBE_VOS,
        "lv_vis": youtube_vis.ADAPTER,
        "vidstg": tubes.VIDSTG,
        "hc_stvg": tubes.HCSTVG,
        "bensmot": bensmot.ADAPTER,
        "a2d": a2d.ADAPTER,
        "rexverse": rexverse.ADAPTER,
        "pam_data": pam_data.ADAPTER,
    }


def adapter_of(config: SourceConfig) -> Adapter:
    """The adapter of a source. Raises `SourceError` with the nearest name, or for an unknown option."""
    known = formats()
    if config.format not in known:
        near = difflib.get_close_matches(config.format, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"source {config.name}: unknown format {config.format!r}{hint} (known: {sorted(known)})")
    adapter = known[config.format]
    unknown = sorted(set(config.options) - set(adapter.options))
    if unknown:
        raise SourceError(
            f"source {config.name}: format {config.format} has no options {unknown}, only {sorted(adapter.options)}"
        )
    return adapter


def list_media(config: SourceConfig) -> pa.Table:
    """The media that a source's annotations name (`ListedMedia` rows, one a URI), files that are not there marked.

    Raises `SourceError` for annotations that cannot be read and `FileNotFoundError` for a media root that is absent.
    """
    schema = arrow_schema(ListedMedia)
    entries = adapter_of(config).media(open_source(config))
    tables = [schema.empty_table()]
    while some := list(islice(entries, _LISTING_ROWS)):
        columns = [pa.array([getattr(entry, field.name) for entry in some], field.type) for field in schema]
        tables.append(pa.Table.from_arrays(columns, schema=schema))
    return pa.concat_tables(tables)


def ingest(config: SourceConfig, probes: pl.DataFrame) -> Iterator[pa.Table]:
    """Region rows of a source (the schema of `Region`, digests filled): one row an annotation record, good or failed.

    `probes` are rows of the `probes` table for the media that `list_media` named. Raises `SourceError` naming the file
    for annotations that are not of the format; the tables before that stand, and come again from the mended file. A
    source without records yields one empty table.
    """
    adapter = adapter_of(config)
    finisher = Finisher(config, probes)
    empty = True
    for raw in _read_ahead(adapter.regions(open_source(config))):
        if len(raw):
            empty = False
            yield finisher.finish(raw)
    if empty:
        yield arrow_schema(Region).empty_table()


def _read_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; the next one is read in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1, "read-ahead") as reading:
        coming = reading.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = reading.submit(next, tables, None)
            yield table


def source_state(config: SourceConfig) -> str:
    """A digest, as hexadecimal text, of the configuration, the adapter, the annotation files and the media files."""
    adapter = adapter_of(config)
    source = open_source(config)
    own = config.model_dump(mode="json", exclude={"captions", "storage_options"})
    return digest_value(
        {
            "config": own,
            "adapter": adapter.version,
            "finish": FINISH_VERSION,
            "annotations": [list(item) for path in annotation_paths(config) for item in _identity(path, config)],
            "media": source.roots.state(),
        }
    ).hex()


def annotation_paths(config: SourceConfig) -> list[str]:
    """The configured annotation files and folders, in order of role."""
    if isinstance(config.annotations, str):
        return [config.annotations]
    return [config.annotations[role] for role in sorted(config.annotations)]


def open_source(config: SourceConfig) -> Source:
    """The source with its media roots (listed on first use); without `media` it is the folder of the annotations."""
    roots = config.media_roots
    if not roots:
        first = annotation_paths(config)[0]
        roots = (first.rpartition("/")[0] or ".",)
    return Source(config, MediaRoots(roots, config.storage_options))


def _identity(path: str, config: SourceConfig) -> Iterator[tuple[str, int | None, str]]:
    """Path, size and mtime or etag of an annotation file, or of all files of a folder."""
    import fsspec

    fs, bare = fsspec.core.url_to_fs(path, **config.storage_options)
    try:
        facts = fs.info(bare)
    except FileNotFoundError as error:
        raise SourceError(f"source {config.name}: no annotations at {path}") from error
    if facts["type"] == "directory":
        yield from ((item.uri, item.num_bytes, item.etag) for _, item in list_files(path, config.storage_options))
        return
    stamp = next((str(facts[name]) for name in ("ETag", "etag", "mtime", "LastModified") if facts.get(name)), "")
    yield path, facts.get("size"), stamp
