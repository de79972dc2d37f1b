"""Runs on a local disk and on a real S3 server (moto's), and rows to put into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from pipeline.tables import Run
from schemas.arrow import arrow_schema, to_table
from schemas.base import Key, Row
from schemas.keys import digest_value


@dataclass(frozen=True)
class Place:
    url: str
    storage_options: dict[str, Any] | None = None

    def run(self) -> Run:
        return Run.open(self.url, self.storage_options)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    """An empty run folder, on a local disk and on S3."""
    if request.param == "local":
        return Place(str(request.getfixturevalue("tmp_path") / "run"))
    return Place(request.getfixturevalue("s3_url"), request.getfixturevalue("s3_options"))


@pytest.fixture
def run(place: Place) -> Run:
    return place.run()


@pytest.fixture
def local_run(tmp_path: Path) -> Run:
    return Run.open(str(tmp_path / "run"))


class Thing(Row):
    key_field: ClassVar[str] = "thing_key"
    content: ClassVar[tuple[str, ...]] = ("thing_key", "text")

    thing_key: Key
    number: int
    text: str | None = None
    num_segments: int = 1


@pytest.fixture
def thing_schema() -> pa.Schema:
    return arrow_schema(Thing)


@pytest.fixture
def things() -> Callable[..., pa.Table]:
    """`things(numbers, **fields)`: one row a number; the same number has the same key and input digest."""

    def make(numbers: Sequence[int], version: int = 0, **fields: Any) -> pa.Table:
        return to_table(
            [
                Thing(
                    thing_key=digest_value(["thing", number]),
                    input_digest=digest_value(["input", number, version]),
                    number=number,
                    **fields,
                )
                for number in numbers
            ],
            Thing,
        )

    return make


FINGERPRINT = digest_value("a way to make things")


@pytest.fixture
def fingerprint() -> bytes:
    return FINGERPRINT
