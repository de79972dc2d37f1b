"""What names a media that was taken down is found in any kind of file, and nothing else is taken for it."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.forgotten import Forgotten, traces
from pipeline.store import Store
from schemas.keys import digest_value

KEY, OTHER, REQUEST = (digest_value(name) for name in ("gone", "there", "asked"))
URI = "/data/images/a (1).jpg"
RECORD = Forgotten(
    media_key=KEY, uris=[URI], sources=["s"], keys=[], requests=[REQUEST], shards=[], packs=[], created="now", done=True
)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def table(*rows: dict) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def found(store: Store, path: str, data: bytes) -> bool:
    store.write_durable(path, data)
    return [file for file, _ in traces(store, [RECORD])] == [path]


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("tables/packed/parts/a.parquet", table({"missing": [{"media_key": KEY, "message": "m"}]})),
        (
            "tables/packed/parts/a.parquet",
            table({"missing": [{"media_key": OTHER, "message": f"{URI}: gone"}]}),
        ),
        ("tables/x/parts/a.parquet", table({"about": {"ids": ["x", KEY.hex()]}})),
        ("tables/probes/parts/a.parquet", table({"media_key": None, "uri": URI, "reason": "missing_media"})),
        ("tables/regions/parts/a.parquet", table({"media_key": KEY, "message": f"at {URI}."})),
        ("packs/p/manifest.json", json.dumps({"failed": [{"message": f"the first: {URI}: no such file"}]}).encode()),
        ("ledger/jobs/a.json", json.dumps({"requests": [OTHER.hex(), REQUEST.hex()]}).encode()),
        ("report/index.html", b"<p>" * (1 << 21) + URI.encode() + b"</p>"),
    ],
)
def test_a_trace_is_found(store, path, data):
    assert found(store, path, data)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("tables/media_refs/parts/a.parquet", table({"media_key": OTHER, "uri": URI})),
        ("tables/probes/parts/a.parquet", table({"uri": URI, "reason": "forgotten"}, {"uri": "/b", "reason": None})),
        ("tables/probes/parts/a.parquet", table({"uri": f"/mnt{URI}"}, {"uri": f"{URI}.bak"}, {"uri": f"{URI}2"})),
        ("tables/media/parts/a.parquet", table({"media_key": OTHER, "group_key": KEY})),
        ("config.yaml", f"sources: [{{annotations: x.json, media: '{URI}'}}]".encode()),
        ("forgotten/a.json", RECORD.model_dump_json().encode()),
    ],
)
def test_what_is_none_is_not_taken_for_one(store, path, data):
    assert not found(store, path, data)
