"""From raw records to region rows: media joined, pixels made upright, boxes clamped, keys computed, by whole columns.

Reasons given here: `missing_media`, `unreadable_media`, `size_mismatch`, `not_finite`, `no_geometry`, `zero_area`,
`box_outside`, `box_too_small`, `mask_size_mismatch`, `empty_mask`, `point_outside`, `frame_outside`,
`duplicate_record`; and those that an adapter has found (`bad_record`, `unknown_category`, `unknown_image`, ...).
Records that are sound and not meant to be used (`NOT_MEANT`: another split, a drawing, no target) are `filtered`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import arrow_schema, conform
from schemas.keys import digest_columns, encode_column, flatten
from schemas.region import Region
from stages.base import with_digest
from stages.ingest import upright
from stages.ingest.base import RAW_SCHEMA, SourceConfig
from stages.media.probe import FORGOTTEN

NOT_MEANT = frozenset(
    {"fake", "other_split", "no_target", "several_targets", "phrase_too_long", "not_verified", FORGOTTEN}
)
"""Reasons of adapters for records that are sound and are not meant to be used: `filtered`, not `failed`."""

MIN_SIDE = 2.0
"""Boxes narrower or lower than this many pixels after clamping point at nothing."""

_REGION_SCHEMA = arrow_schema(Region)
_PROBE_COLUMNS = (
    "uri",
    "media_key",
    "status",
    "reason",
    "message",
    "width",
    "height",
    "orientation",
    "num_frames",
    "fps",
)
_GEOMETRY = ("box", "points", "polygons", "mask", "track")
_PROMPT = ("frame_index", "box", "relative", "points", "polygons", "mask")
"""The prompt geometry as the source gives it; a region's key does not depend on how we clamp or turn it."""


class Verdicts:
    """The first reason against each row, with its message."""

    def __init__(self, length: int) -> None:
        self.reason: NDArray[np.object_] = np.full(length, None, object)
        self.message: NDArray[np.object_] = np.full(length, None, object)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Rows against which nothing has been said."""
        good: NDArray[np.bool_] = self.reason == np.array(None, object)
        return good

    def fail(self, rows: NDArray[np.bool_], reason: str, message: str) -> None:
        """Fails those of the rows that were good."""
        rows = rows & self.good
        self.reason[rows], self.message[rows] = reason, message

    def fail_row(self, row: int, reason: str, message: str) -> None:
        """Fails one row unless it has failed before."""
        if self.reason[row] is None:
            self.reason[row], self.message[row] = reason, message


class _Media:
    """The probes of a source, found by URI without going through all of them for each batch."""

    def __init__(self, probes: pl.DataFrame) -> None:
        renamed = {name: f"media_{name}" for name in _PROBE_COLUMNS if name not in ("uri", "media_key")}
        frame = probes.select(_PROBE_COLUMNS).unique("uri", keep="first").rename(renamed)
        self._probes = frame.with_columns(pl.col("uri").hash().alias("_hash")).sort("_hash")
        self._hashes: NDArray[np.uint64] = self._probes["_hash"].to_numpy()
        self._probes = self._probes.drop("_hash")
        self._with_none = pl.concat([self._probes, self._probes.clear(1)])

    def of(self, uris: pa.ChunkedArray) -> pl.DataFrame:
        """The probe of each URI, in order; null beside a URI that was not probed."""
        frame = pl.DataFrame({"uri": pl.Series(uris.to_numpy(), dtype=pl.String)})
        hashed = frame["uri"].hash().to_numpy()
        at = np.searchsorted(self._hashes, hashed)
        known = at < len(self._hashes)
        known[known] = self._hashes[at[known]] == hashed[known]
        found = self._with_none[np.where(known, at, len(self._hashes))]
        if (found["uri"] != frame["uri"]).any():  # two URIs of one hash
            return frame.join(self._probes, on="uri", how="left", maintain_order="left")
        return frame.hstack(found.drop("uri"))


class Finisher:
    """Finishes the batches of one source; remembers its keys, so that a record given twice fails the second time."""

    def __init__(self, config: SourceConfig, probes: pl.DataFrame) -> None:
        """`probes`: rows of the `probes` table, at least of this source's URIs."""
        self._config = config
        self._media = _Media(probes)
        self._seen: list[NDArray[np.uint64]] = []

    def finish(self, raw: pa.Table) -> pa.Table:
        """Region rows of a raw batch, one a record, in order, digests filled."""
        raw = raw.cast(RAW_SCHEMA) if raw.schema != RAW_SCHEMA else raw
        verdicts = Verdicts(len(raw))
        media = self._media.of(raw["uri"])
        _adapter_verdicts(raw, verdicts)
        raw = _without_nonfinite(raw, verdicts)
        polygons = flatten(raw["polygons"])
        encoded = {"polygons": encode_column(polygons)} if polygons.null_count < len(polygons) else {}
        prompt = digest_columns({name: raw[name] for name in _PROMPT} | encoded)
        record = digest_columns(
            {"prompt": prompt} | {item.name: raw[item.name] for item in RAW_SCHEMA if item.name not in _PROMPT}
        )
        _media_verdicts(media, verdicts)
        columns = {name: flatten(raw[name]) for name in _GEOMETRY} | {"polygons": polygons}
        columns = upright.geometry(raw, columns, media, self._config.coordinates, verdicts)
        columns["box"] = _clamped(columns, media, verdicts)
        columns = upright.checked_points(columns, media, verdicts)
        known = encoded if columns["polygons"] is polygons else {}
        rows = self._rows(raw, media, columns, prompt, record, verdicts)
        if (verdicts.reason == FORGOTTEN).any():
            rows, known = _emptied(rows, verdicts.reason == FORGOTTEN), {}
        return with_digest(conform(rows, _REGION_SCHEMA), Region, known)

    def _rows(
        self, raw: pa.Table, media: pl.DataFrame, columns: dict[str, pa.Array], prompt: pa.Array, record: pa.Array,
        verdicts: Verdicts,
    ) -> pa.Table:  # fmt: skip
        config, length = self._config, len(raw)
        frame = raw["frame_index"].to_numpy()
        fps = media["media_fps"].cast(pl.Float64).fill_null(0.0).to_numpy()
        media_key = media["media_key"].to_arrow()
        source = pa.repeat(config.name, length)
        table: dict[str, Any] = {name: raw[name] for name in raw.column_names if name in _REGION_SCHEMA.names}
        table |= columns | {
            "media_key": media_key,
            "source": source,
            "split": pc.fill_null(raw["split"], config.split),
            "licence": pc.fill_null(raw["licence"], config.licence) if config.licence else raw["licence"],
            "time_s": pa.array(np.where(fps > 0, frame / np.where(fps > 0, fps, 1.0), 0.0)),
            "hints": pc.fill_null(raw["hints"], pa.scalar([], raw.schema.field("hints").type)),
        }
        keys = digest_columns(
            {"media_key": media_key, "source": source, "source_id": raw["source_id"], "prompt": prompt}
        )
        table["region_key"] = self._unique(keys, verdicts)
        good = verdicts.good
        passed_over = np.isin(verdicts.reason.astype(str), list(NOT_MEANT))
        table["status"] = pa.array(np.where(good, "ok", np.where(passed_over, "filtered", "failed")))
        table["reason"] = pa.array(verdicts.reason.tolist(), pa.string())
        table["message"] = pa.array(verdicts.message.tolist(), pa.string())
        table["attempts"] = pa.repeat(1, length)
        table["input_digest"] = digest_columns({"record": record, "media": media_key})
        return pa.table(table)

    def _unique(self, keys: pa.Array, verdicts: Verdicts) -> pa.Array:
        """Keys without repetition: a record that comes again fails, under a key made of its number of appearance."""
        heads = np.frombuffer(keys.buffers()[1], np.uint64)[::2][: len(keys)]
        again = _repeated(heads)
        for seen in self._seen:
            at = np.minimum(np.searchsorted(seen, heads), len(seen) - 1)
            again |= seen[at] == heads
        self._remember(np.sort(heads))
        if not again.any():
            return keys
        verdicts.reason[again] = "duplicate_record"
        verdicts.message[again] = "the same record (id, media and geometry) has come before in this source"
        number = sum(len(seen) for seen in self._seen) - len(keys) + np.arange(len(keys))
        renamed = digest_columns({"key": keys, "repeat": pa.array(number)})
        return pc.if_else(pa.array(again), renamed, keys)

    def _remember(self, heads: NDArray[np.uint64]) -> None:
        """Sorted runs, merged when they double, so that a source of millions costs a few searches a batch."""
        if not len(heads):
            return
        while self._seen and len(self._seen[-1]) <= 2 * len(heads):
            heads = np.sort(np.concatenate([self._seen.pop(), heads]))
        self._seen.append(heads)


def _emptied(table: pa.Table, forgotten: NDArray[np.bool_]) -> pa.Table:
    """The rows of forgotten media count, and say nothing of them but the source's own id."""
    rows = pa.array(np.arange(len(table)), mask=forgotten)
    nothing = pa.scalar([], _REGION_SCHEMA.field("hints").type)
    cleared = {name: flatten(table[name]).take(rows) for name in (*_GEOMETRY, "label", "hints")}
    cleared["hints"] = pc.fill_null(cleared["hints"], nothing)
    return pa.table({name: cleared.get(name, table[name]) for name in table.column_names})


def _repeated(heads: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Rows whose value stands in an earlier row."""
    again = np.ones(len(heads), bool)
    again[np.unique(heads, return_index=True)[1]] = False
    return again


def _adapter_verdicts(raw: pa.Table, verdicts: Verdicts) -> None:
    if raw["bad"].null_count < len(raw):
        verdicts.reason[:] = raw["bad"].to_pylist()
        verdicts.message[:] = raw["message"].to_pylist()


def _without_nonfinite(raw: pa.Table, verdicts: Verdicts) -> pa.Table:
    """Rows with NaN or infinity anywhere in their geometry lose it and fail: no key can be made of such numbers."""
    hit = np.zeros(len(raw), bool)
    for name in (*_GEOMETRY, "width", "height", "fps"):
        hit |= _nonfinite(flatten(raw[name]))
    if not hit.any():
        return raw
    shown = {int(row): f"not finite: box {raw['box'][int(row)].as_py()}" for row in np.flatnonzero(hit)}
    for row, message in shown.items():
        verdicts.fail_row(row, "not_finite", message)
    for name in (*_GEOMETRY, "width", "height", "fps"):
        at = raw.schema.get_field_index(name)
        field = raw.schema.field(name)
        values = flatten(raw[name])
        cleared = values.take(pa.array(np.arange(len(raw)), mask=hit))
        raw = raw.set_column(at, field, cleared)
    return raw


def _nonfinite(array: pa.Array) -> NDArray[np.bool_]:
    """Rows of an array (numbers, lists, structs of these) that hold a number that is not finite."""
    kind = array.type
    if pa.types.is_floating(kind):
        values = np.asarray(pc.fill_null(array, 0.0).to_numpy(zero_copy_only=False), np.float64)
        return ~np.isfinite(values)
    if pa.types.is_struct(kind):
        hit = np.zeros(len(array), bool)
        for item in array.flatten():
            hit |= _nonfinite(item)
        return hit
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        below = _nonfinite(array.flatten())
        out = np.zeros(len(array), bool)
        if below.any():
            out[pc.list_parent_indices(array).to_numpy()[below]] = True
        return out
    return np.zeros(len(array), bool)


def _media_verdicts(media: pl.DataFrame, verdicts: Verdicts) -> None:
    status = media["media_status"]
    absent = status.is_null().to_numpy()
    verdicts.fail(absent, "missing_media", "the media was not probed: its source does not list it")
    failed = (status != "ok").fill_null(False).to_numpy() & ~absent
    for row in np.flatnonzero(failed & verdicts.good):
        reason = media["media_reason"][int(row)] or "unreadable_media"
        verdicts.fail_row(int(row), reason, media["media_message"][int(row)] or "")


def _clamped(columns: dict[str, pa.Array], media: pl.DataFrame, verdicts: Verdicts) -> pa.Array:
    """Boxes clamped to the media; those with nothing inside fail and stay as they were."""
    boxes = columns["box"]
    given = boxes.is_valid().to_numpy(zero_copy_only=False)
    values = np.zeros((len(boxes), 4))
    if given.any():
        values[given] = np.asarray(boxes.drop_null().flatten().to_numpy()).reshape(-1, 4)
    width = media["media_width"].cast(pl.Float64).fill_null(0.0).to_numpy()
    height = media["media_height"].cast(pl.Float64).fill_null(0.0).to_numpy()
    x0, y0, x1, y1 = values.T
    check = given & verdicts.good
    verdicts.fail(check & ((x1 <= x0) | (y1 <= y0)), "zero_area", "the box has no area")
    outside = (x0 >= width) | (y0 >= height) | (x1 <= 0) | (y1 <= 0)
    verdicts.fail(check & outside, "box_outside", "the box lies outside the image")
    clamped = np.stack([x0.clip(0, width), y0.clip(0, height), x1.clip(0, width), y1.clip(0, height)], axis=1)
    small = (clamped[:, 2] - clamped[:, 0] < MIN_SIDE) | (clamped[:, 3] - clamped[:, 1] < MIN_SIDE)
    verdicts.fail(check & small, "box_too_small", f"under {MIN_SIDE:g} pixels wide or high within the image")
    out = np.where((given & verdicts.good)[:, None], clamped, values)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(out.ravel()), 4)
    kept = pc.if_else(pa.array(given), flat, pa.scalar(None, flat.type))
    return kept.cast(_REGION_SCHEMA.field("box").type)
