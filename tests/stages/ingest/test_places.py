"""Where annotations and photos may lie: folders, archives, servers, and archives on servers; the rows are the same."""

from __future__ import annotations

import functools
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages.ingest.base import SourceConfig
from stages.ingest.sources import source_state


class Ranges(SimpleHTTPRequestHandler):
    """Python's file server, with ranges as real servers have them."""

    def do_GET(self) -> None:
        wanted, path = self.headers.get("Range", ""), Path(self.translate_path(self.path))
        if not wanted.startswith("bytes=") or not path.is_file():
            super().do_GET()
            return
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        whole = path.read_bytes()
        part = whole[int(start) : int(end) + 1 if end else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def data(tmp_path, picture) -> Path:
    """One COCO file and its photo, as they are, in a zip and in a tar."""
    folder = tmp_path / "data"
    picture(folder / "images" / "train" / "a.png")
    document = {
        "images": [{"id": 5, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [4, 6, 20, 10]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.write(folder / "instances.json", "annotations/instances.json")
        archive.write(folder / "images" / "train" / "a.png", "train/a.png")
    for ending in ("tar", "tar.gz"):
        with tarfile.open(folder / f"all.{ending}", "w:gz" if ending.endswith("gz") else "w") as tar:
            tar.add(folder / "images" / "train" / "a.png", "train/a.png")
    return folder


@pytest.fixture
def server(data) -> Iterator[str]:
    """The address of a server of these files."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(data)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize(
    ("annotations", "media"),
    [
        ("{data}/instances.json", "{data}/images"),
        ("zip://annotations/instances.json::{data}/all.zip", "{data}/all.zip"),
        ("{data}/instances.json", "{data}/all.tar"),
        ("{data}/instances.json", "{data}/all.tar.gz"),
        ("{server}/instances.json", "{server}/images/"),
        ("{server}/instances.json", "{server}/all.zip"),
        ("{server}/instances.json", "{server}/all.tar"),
    ],
)
def test_a_source_is_read_from_wherever_it_lies(data, server, rows_of, annotations, media):
    config = SourceConfig(
        format="coco",
        annotations=annotations.format(data=data, server=server),
        media=media.format(data=data, server=server),
    )
    (row,) = rows_of(config)
    assert (row.status, row.message, row.box) == ("ok", None, (4, 6, 24, 16))
    plain = SourceConfig(format="coco", annotations=f"{data}/instances.json", media=f"{data}/images")
    assert row.region_key == rows_of(plain)[0].region_key
    assert source_state(config) == source_state(config)
