"""Spans made elsewhere: a JSONL file of a temporal grounding model's output or of people's dense captions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.base import UnitError

Spans = dict[str, list[list[float]]]


def load_spans(path: str) -> Spans:
    """Spans by `source_id`, `region_key` (hexadecimal) or `uri`, whichever a line names.

    A line is `{"source_id": "...", "spans": [[start_s, end_s], ...]}`. Raises `ValueError` naming the file and line of
    anything else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"chunk.file: {path} does not exist")
    found: Spans = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name = next(str(record[field]) for field in ("region_key", "source_id", "uri") if record.get(field))
            found[name] = [[float(a), float(b)] for a, b in record["spans"]]
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
            raise ValueError(
                f'{path}, line {number}: expected {{"source_id": ..., "spans": [[start_s, end_s], ...]}}: {error!r}'
            ) from error
    return found


def spans_for(spans: Spans, unit: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The spans of a unit. Raises `UnitError` (`no_spans`) when the file says nothing of it."""
    for name in (unit["region_key"].hex(), unit["source_id"], unit["uri"]):
        if name is not None and name in spans:
            return [(a, b) for a, b in spans[name]]
    raise UnitError("no_spans", f"the spans file says nothing of {unit['source_id'] or unit['uri']}")
