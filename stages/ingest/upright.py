"""Coordinates at the door: fractions to pixels, stored rasters to upright ones, masks and tracks onto their media.

Where a file carries an EXIF orientation, annotations may be of the raster as stored or as shown. The size that they
state tells which; where it does not, the configuration's `coordinates` does. Whole columns are passed through untouched
unless some of their rows need work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.ingest import rle
from stages.ingest.base import RAW_SCHEMA, Coordinates

if TYPE_CHECKING:
    from stages.ingest.finish import Verdicts

Columns = dict[str, pa.Array]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SIZE_SLACK = 1.0
"""Pixels by which a stated size may differ from the file's."""
MASK_SLACK = 2
"""Pixels by which a mask may be larger or smaller than its image; it is cut or padded at the right and bottom edge."""


@dataclass(frozen=True)
class Frame:
    """Of each row: the upright size, the stored size, the orientation to undo (1: none)."""

    width: Floats
    height: Floats
    stored_width: Floats
    stored_height: Floats
    turn: NDArray[np.int64]


def geometry(
    raw: pa.Table, columns: Columns, media: pl.DataFrame, coordinates: Coordinates, verdicts: Verdicts
) -> Columns:
    """The geometry columns in upright pixels; boxes that were not given are taken from polygons, masks or points."""
    frame = _frame(raw, media, coordinates, verdicts)
    out = dict(columns)
    out["box"] = _pixels(columns["box"], raw["relative"], frame)
    out["mask"] = _resized(columns["mask"], raw["resize_mask"], frame, verdicts)
    _check_masks(out["mask"], frame, verdicts)
    turned = (frame.turn > 1) & verdicts.good
    if turned.any():
        for name in ("box", "points", "polygons", "mask"):
            out[name] = _mapped(out[name], turned, RAW_SCHEMA.field(name).type, _turner(name, frame))
    out["mask"] = _fitted(out["mask"], frame, verdicts)
    if columns["track"].null_count < len(columns["track"]):
        out["track"] = _tracks(out["track"], frame, media, verdicts)
    _check_frames(raw, media, verdicts)
    out["box"] = _filled(out, verdicts)
    return out


def checked_points(columns: Columns, media: pl.DataFrame, verdicts: Verdicts) -> Columns:
    """Fails rows with a point outside their media."""
    points = columns["points"]
    if points.null_count == len(points):
        return columns
    width, height = media["media_width"].to_list(), media["media_height"].to_list()
    for row in np.flatnonzero(points.is_valid().to_numpy(zero_copy_only=False) & verdicts.good):
        for point in points[int(row)].as_py():
            if not (0 <= point["x"] <= width[row] and 0 <= point["y"] <= height[row]):
                place = f"({point['x']:g}, {point['y']:g})"
                verdicts.fail_row(int(row), "point_outside", f"the point {place} lies outside the image")
    return columns


def _frame(raw: pa.Table, media: pl.DataFrame, coordinates: Coordinates, verdicts: Verdicts) -> Frame:
    width, height = _floats(media["media_width"]), _floats(media["media_height"])
    orientation = media["media_orientation"].fill_null(1).cast(pl.Int64).to_numpy()
    swapped = orientation >= 5
    stored_width, stored_height = np.where(swapped, height, width), np.where(swapped, width, height)
    stated = [pc.fill_null(raw[name], -1.0).to_numpy() for name in ("width", "height")]
    known = (stated[0] > 0) & (stated[1] > 0)
    as_shown = (np.abs(stated[0] - width) <= SIZE_SLACK) & (np.abs(stated[1] - height) <= SIZE_SLACK)
    as_stored = (np.abs(stated[0] - stored_width) <= SIZE_SLACK) & (np.abs(stated[1] - stored_height) <= SIZE_SLACK)
    told = known & as_stored & ~as_shown
    turned = told | raw["stored"].to_numpy() if coordinates == "auto" else np.full(len(raw), coordinates == "stored")
    agrees = np.where(turned, as_stored, as_shown)
    for row in np.flatnonzero(known & ~agrees & verdicts.good):
        verdicts.fail_row(
            int(row),
            "size_mismatch",
            f"the annotations are of {stated[0][row]:g}x{stated[1][row]:g} pixels, the file has "
            f"{width[row]:g}x{height[row]:g}",
        )
    return Frame(width, height, stored_width, stored_height, np.where(turned, orientation, 1))


def _floats(column: pl.Series) -> Floats:
    return column.cast(pl.Float64).fill_null(0.0).to_numpy()


def _pixels(boxes: pa.Array, relative: pa.ChunkedArray, frame: Frame) -> pa.Array:
    """Fractions of the image times its size (of the raster they are of)."""
    flags = relative.to_numpy()
    if not flags.any():
        return boxes
    turned = frame.turn > 1
    width = np.where(turned, frame.stored_width, frame.width)
    height = np.where(turned, frame.stored_height, frame.height)

    def scaled(box: list[float], row: int) -> list[float]:
        w, h = float(width[row]), float(height[row])
        return [box[0] * w, box[1] * h, box[2] * w, box[3] * h]

    return _mapped(boxes, flags, boxes.type, scaled)


def _mapped(array: pa.Array, rows: Bools, kind: pa.DataType, change: Any) -> pa.Array:
    """The array with `change(value, row)` in the given rows that are not null."""
    rows = rows & array.is_valid().to_numpy(zero_copy_only=False)
    if not rows.any():
        return array
    at = np.flatnonzero(rows)
    fresh = pa.array([change(array[int(row)].as_py(), int(row)) for row in at], kind)
    index = np.arange(len(array))
    index[at] = len(array) + np.arange(len(at))
    whole = array if array.type == kind else array.cast(kind)
    return pa.concat_arrays([whole, fresh]).take(pa.array(index))


def _turner(name: str, frame: Frame) -> Any:
    def point(x: float, y: float, row: int) -> tuple[float, float]:
        return turn_point(x, y, int(frame.turn[row]), float(frame.stored_width[row]), float(frame.stored_height[row]))

    def box(value: list[float], row: int) -> list[float]:
        ax, ay = point(value[0], value[1], row)
        bx, by = point(value[2], value[3], row)
        return [min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)]

    def points(value: list[dict[str, Any]], row: int) -> list[dict[str, Any]]:
        return [
            {**item, "x": x, "y": y} for item, (x, y) in ((item, point(item["x"], item["y"], row)) for item in value)
        ]

    def polygons(value: list[list[float]], row: int) -> list[list[float]]:
        return [
            [number for x, y in zip(ring[::2], ring[1::2], strict=True) for number in point(x, y, row)]
            for ring in value
        ]

    def mask(value: dict[str, Any], row: int) -> dict[str, Any]:
        runs, height, width = rle.runs_of(value)
        return rle.of_mask(turn_mask(rle.decode(runs, height, width), int(frame.turn[row])))

    return {"box": box, "points": points, "polygons": polygons, "mask": mask}[name]


def turn_point(x: float, y: float, orientation: int, width: float, height: float) -> tuple[float, float]:
    """A point of the stored raster (`width` x `height`) in the upright image."""
    return {
        1: (x, y),
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }[orientation]


def turn_mask(mask: NDArray[np.bool_], orientation: int) -> NDArray[np.bool_]:
    """A mask of the stored raster (H, W) as a mask of the upright image."""
    turned = {
        1: lambda m: m,
        2: lambda m: m[:, ::-1],
        3: lambda m: m[::-1, ::-1],
        4: lambda m: m[::-1],
        5: lambda m: m.T,
        6: lambda m: np.rot90(m, -1),
        7: lambda m: m[::-1, ::-1].T,
        8: lambda m: np.rot90(m),
    }[orientation](mask)
    return np.ascontiguousarray(turned)


def _sizes(masks: pa.Array) -> tuple[Bools, NDArray[np.int64]]:
    """Which rows have a mask, and its (height, width)."""
    given = masks.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.zeros((len(masks), 2), np.int64)
    if given.any():
        sizes[given] = masks.drop_null().field("size").flatten().to_numpy().reshape(-1, 2)
    return given, sizes


def _resized(masks: pa.Array, wanted: pa.ChunkedArray, frame: Frame, verdicts: Verdicts) -> pa.Array:
    """Masks of a resolution of their own at that of the raster they are of (nearest pixel)."""
    rows = wanted.to_numpy() & verdicts.good
    if not rows.any():
        return masks
    turned = frame.turn > 1
    width = np.where(turned, frame.stored_width, frame.width).astype(int)
    height = np.where(turned, frame.stored_height, frame.height).astype(int)

    def resized(mask: dict[str, Any], row: int) -> dict[str, Any]:
        small = rle.decode(*rle.runs_of(mask)).astype(np.uint8)
        size = (int(width[row]), int(height[row]))
        return rle.of_mask(cv2.resize(small, size, interpolation=cv2.INTER_NEAREST) > 0)

    return _mapped(masks, rows, masks.type, resized)


def _check_masks(masks: pa.Array, frame: Frame, verdicts: Verdicts) -> None:
    given, sizes = _sizes(masks)
    turned = frame.turn > 1
    width = np.where(turned, frame.stored_width, frame.width)
    height = np.where(turned, frame.stored_height, frame.height)
    far = (np.abs(sizes[:, 0] - height) > MASK_SLACK) | (np.abs(sizes[:, 1] - width) > MASK_SLACK)
    for row in np.flatnonzero(given & far & verdicts.good):
        verdicts.fail_row(
            int(row),
            "mask_size_mismatch",
            f"the mask has {sizes[row, 1]}x{sizes[row, 0]} pixels, the image {width[row]:g}x{height[row]:g}",
        )


def _fitted(masks: pa.Array, frame: Frame, verdicts: Verdicts) -> pa.Array:
    """Masks that are a pixel or two off, cut or padded to the image."""
    given, sizes = _sizes(masks)
    off = given & verdicts.good & ((sizes[:, 0] != frame.height) | (sizes[:, 1] != frame.width))
    return _mapped(masks, off, masks.type, lambda m, row: fit(m, int(frame.height[row]), int(frame.width[row])))


def fit(mask: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Run lengths cut or padded at the right and bottom edge to (height, width)."""
    if tuple(mask["size"]) == (height, width):
        return mask
    runs, old_height, old_width = rle.runs_of(mask)
    out = np.zeros((height, width), bool)
    inside = rle.decode(runs, old_height, old_width)[:height, :width]
    out[: inside.shape[0], : inside.shape[1]] = inside
    return rle.of_mask(out)


def _check_frames(raw: pa.Table, media: pl.DataFrame, verdicts: Verdicts) -> None:
    frames = media["media_num_frames"].fill_null(1).to_numpy()
    index = raw["frame_index"].to_numpy()
    for row in np.flatnonzero(((index < 0) | (index >= frames)) & verdicts.good):
        verdicts.fail_row(
            int(row), "frame_outside", f"the prompt frame {index[row]} is not in the video of {frames[row]} frames"
        )


def _tracks(tracks: pa.Array, frame: Frame, media: pl.DataFrame, verdicts: Verdicts) -> pa.Array:
    fps, counts = _floats(media["media_fps"]), media["media_num_frames"].fill_null(1).to_numpy()

    def placed(track: list[dict[str, Any]], row: int) -> list[dict[str, Any]]:
        width, height = float(frame.width[row]), float(frame.height[row])
        inside = [point for point in track if 0 <= point["frame_index"] < counts[row]]
        if len(inside) < len(track) and verdicts.reason[row] is None:
            cut = len(track) - len(inside)
            verdicts.message[row] = f"{cut} annotated frames beyond the video's {counts[row]} frames were cut"
        return [_placed_point(point, width, height, float(fps[row])) for point in inside]

    return _mapped(tracks, verdicts.good, tracks.type, placed)


def _placed_point(point: dict[str, Any], width: float, height: float, fps: float) -> dict[str, Any]:
    mask, box = point["mask"], point["box"]
    if mask is not None:
        mask = fit(mask, int(height), int(width))
        if box is None:
            runs, rows, _ = rle.runs_of(mask)
            box = rle.box_of_runs(runs, rows)
            mask = mask if box is not None else None
    if box is not None:
        box = [min(max(v, 0.0), width if i % 2 == 0 else height) for i, v in enumerate(box)]
        if box[2] <= box[0] or box[3] <= box[1]:
            box = None
    time = point["frame_index"] / fps if fps > 0 else point["time_s"]
    return {"frame_index": point["frame_index"], "time_s": time, "box": box, "mask": mask}


def _filled(columns: Columns, verdicts: Verdicts) -> pa.Array:
    """Boxes, those that were not given from polygons or masks; a row without any geometry fails."""
    boxes = columns["box"]
    empty = boxes.is_null().to_numpy(zero_copy_only=False) & verdicts.good
    if not empty.any():
        return boxes
    values = boxes.to_pylist()
    for row in map(int, np.flatnonzero(empty)):
        polygons, mask = columns["polygons"][row].as_py(), columns["mask"][row].as_py()
        if polygons:
            xs = [x for ring in polygons for x in ring[0::2]]
            ys = [y for ring in polygons for y in ring[1::2]]
            values[row] = [min(xs), min(ys), max(xs), max(ys)]
        elif mask is not None:
            runs, height, _ = rle.runs_of(mask)
            values[row] = rle.box_of_runs(runs, height)
            if values[row] is None:
                verdicts.fail_row(row, "empty_mask", "no pixel is inside the mask")
        elif not columns["points"][row].as_py():
            verdicts.fail_row(row, "no_geometry", "the record has no box, points, polygons or mask")
    return pa.array(values, boxes.type)
