"""What a reader sees of a run at one moment: rows by table and fingerprint, each exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
import pyarrow as pa

from pipeline.commits import INPUT_DIGEST, Commit, RunError
from pipeline.snapshot import Snapshot, live, read_tombstones
from pipeline.store import Store
from schemas.arrow import no_rows
from schemas.base import SCHEMA_VERSION
from schemas.keys import digest_value

_INDEX = "__row"

Fingerprints = bytes | Iterable[bytes] | None


@dataclass(frozen=True)
class View:
    """A consistent moment of a run. It stays readable until `gc` deletes a part that it names.

    `tables` maps a table to its counting commits, in the order in which they were made.
    """

    store: Store
    tables: Mapping[str, tuple[Commit, ...]]
    snapshot: Snapshot | None
    _superseded: dict[bytes, pl.Series] = field(default_factory=dict, repr=False, compare=False)

    def commits(self, table: str, fingerprint: Fingerprints = None) -> tuple[Commit, ...]:
        """The commits of a table with this fingerprint, or one of these; all of them for None."""
        found = self.tables.get(table, ())
        if fingerprint is None:
            return found
        wanted = {fingerprint} if isinstance(fingerprint, bytes) else set(fingerprint)
        return tuple(commit for commit in found if bytes.fromhex(commit.fingerprint) in wanted)

    def fingerprints(self, table: str) -> list[bytes]:
        """The fingerprints of which a table has rows, oldest first."""
        return [
            bytes.fromhex(each) for each in dict.fromkeys(commit.fingerprint for commit in self.tables.get(table, ()))
        ]

    def active(self, name: str) -> bytes | None:
        """The snapshot's fingerprint of a stage or task; None if there is none."""
        found = self.snapshot.fingerprints.get(name) if self.snapshot else None
        return bytes.fromhex(found) if found is not None else None

    def key_field(self, table: str) -> str:
        """The key column of a table. Raises `LookupError` for a table without commits."""
        names = {commit.part.key_field for commit in self.tables.get(table, ())}
        if not names:
            raise LookupError(f"{self.store.url} has no table {table!r}; it has {sorted(self.tables)}")
        if len(names) > 1:
            raise RunError(f"table {table!r} of {self.store.url} was written with several keys: {sorted(names)}")
        return names.pop()

    def rows(
        self,
        table: str,
        fingerprint: Fingerprints,
        columns: Sequence[str] | None = None,
        *,
        schema: pa.Schema | None = None,
    ) -> pl.LazyFrame:
        """The rows of a fingerprint (several; all for None), each (key, input digest) once: the latest committed.

        Parts are read only as far as the query needs. With `schema` the frame has its columns, those that older parts
        lack as nulls, and a table without rows gives an empty frame; without it that raises `LookupError`.
        """
        commits = self.commits(table, fingerprint)
        if not commits:
            if schema is None:
                raise LookupError(
                    f"{self.store.url} has no rows of that fingerprint in table {table!r}; give `schema` for none"
                )
            frame = pl.DataFrame(pl.from_arrow(no_rows(schema))).lazy()
            return frame if columns is None else frame.select(columns)
        _check_versions(commits)
        superseded = self._superseded_rows(table, commits)
        frame = _scan(self.store, commits, schema)
        if len(superseded):
            dead = superseded.to_frame(_INDEX).lazy()
            frame = frame.with_row_index(_INDEX).join(dead, on=_INDEX, how="anti").drop(_INDEX)
        return frame if columns is None else frame.select(columns)

    def live(
        self,
        table: str,
        fingerprint: Fingerprints,
        columns: Sequence[str] | None = None,
        *,
        schema: pa.Schema | None = None,
    ) -> pl.LazyFrame:
        """`rows` without those that the latest ingest no longer has."""
        rows = self.rows(table, fingerprint, schema=schema)
        if self.tables.get(table):
            rows = live(rows, self.tombstones(), table, self.key_field(table))
        return rows if columns is None else rows.select(columns)

    def tombstones(self) -> pl.DataFrame:
        """The rows that the snapshot says were dropped: table, key, input_digest."""
        return read_tombstones(self.store, self.snapshot.tombstones if self.snapshot else None)

    def written(self, table: str, fingerprint: Fingerprints = None) -> Counter[str]:
        """Rows by status as committed, repeated ones included; costs no reading. `rows` counts each once."""
        total: Counter[str] = Counter()
        for commit in self.commits(table, fingerprint):
            total.update(commit.part.statuses)
        return total

    def _superseded_rows(self, table: str, commits: Sequence[Commit]) -> pl.Series:
        """Row numbers, over the parts in commit order, of rows of which a later one has the same key and input."""
        cached = digest_value([commit.part.path for commit in commits])
        if cached not in self._superseded:
            on = [self.key_field(table), INPUT_DIGEST]
            keys = _scan(self.store, commits, None).select(on)
            total = sum(commit.part.rows for commit in commits)
            # As many 64-bit hashes as rows: none comes twice. Fewer, even by a collision: look at the keys themselves.
            hashes = pl.col(on[0]).hash(0) ^ pl.col(on[1]).hash(1)
            distinct = keys.select(hashes.n_unique()).collect(engine="streaming").item()
            found = pl.Series(_INDEX, [], pl.get_index_type())
            if distinct != total:
                found = _all_but_last(keys.with_row_index(_INDEX), on)
            self._superseded[cached] = found
        return self._superseded[cached]


def _all_but_last(keys: pl.LazyFrame, on: list[str]) -> pl.Series:
    last = keys.group_by(on).agg(pl.col(_INDEX).max())
    return keys.select(_INDEX).join(last.select(_INDEX), on=_INDEX, how="anti").collect(engine="streaming")[_INDEX]


def _check_versions(commits: Sequence[Commit]) -> None:
    for commit in commits:
        if commit.part.schema_version > SCHEMA_VERSION:
            raise RunError(
                f"{commit.part.path} has schema version {commit.part.schema_version}, this perceive-engine knows"
                f" {SCHEMA_VERSION}: upgrade it"
            )


def _scan(store: Store, commits: Sequence[Commit], schema: pa.Schema | None) -> pl.LazyFrame:
    """The parts of these commits one after another, lazily, in commit order."""
    paths = [commit.part.path for commit in commits]
    options = polars_options(store)
    if options is None:
        import pyarrow.dataset as pads  # brings pandas along, which costs every command a second

        parts = [store.full(path) for path in paths]
        return pl.scan_pyarrow_dataset(pads.dataset(parts, schema, filesystem=store.fs))
    if schema is not None:
        columns = pl.DataFrame(pl.from_arrow(no_rows(schema))).schema
    else:
        columns = pl.scan_parquet(store.address(paths[-1]), glob=False, storage_options=options).collect_schema()
    return pl.scan_parquet(
        [store.address(path) for path in paths],
        schema=columns,
        missing_columns="insert",
        extra_columns="ignore",
        glob=False,
        storage_options=options,
    )


def polars_options(store: Store) -> dict[str, str] | None:
    """What polars' own reader needs to open the store; None if it has no reader for this protocol."""
    if store.local:
        return {}
    if store.protocol not in ("s3", "s3a"):
        return None
    given = store.storage_options
    client = given.get("client_kwargs", {})
    endpoint = given.get("endpoint_url") or client.get("endpoint_url")
    named = {
        "aws_access_key_id": given.get("key"),
        "aws_secret_access_key": given.get("secret"),
        "aws_session_token": given.get("token"),
        "aws_region": client.get("region_name"),
        "aws_endpoint_url": endpoint,
        "aws_allow_http": "true" if endpoint and endpoint.startswith("http://") else None,
        "aws_skip_signature": "true" if given.get("anon") else None,
    }
    return {name: value for name, value in named.items() if value is not None}
