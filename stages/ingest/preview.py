"""A picture of a source: its first regions drawn on their media, to see whether they lie where they should."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import polars as pl
from PIL import Image, ImageDraw, ImageFont

from schemas.arrow import from_table
from schemas.region import Region
from stages.base import UnitError, checked
from stages.ingest import rle
from stages.ingest.base import SourceConfig
from stages.ingest.finish import Finisher
from stages.ingest.sources import adapter_of, list_media, open_source
from stages.media.images import Pixels, load_image
from stages.media.probe import ProbeStage, probe_units

CELL = 320
_TEXT = 44
_COLOUR = (255, 64, 32)
_SCANNED_RECORDS = 4096


def preview(config: SourceConfig, limit: int = 16) -> bytes:
    """PNG of the first `limit` good regions in a grid: mask tinted, box and points drawn, label or phrase below.

    Only the media of those regions are opened. Records that fail are counted in the last line of the picture. Raises
    `SourceError` as `ingest` does.
    """
    regions, failed = _first_regions(config, limit)
    cells = [_cell(region, config.storage_options) for region in regions]
    columns = min(4, max(1, len(cells)))
    lines = max(1, -(-len(cells) // columns))
    sheet = Image.new("RGB", (columns * CELL, lines * (CELL + _TEXT) + _TEXT // 2), "white")
    for index, cell in enumerate(cells):
        sheet.paste(cell, ((index % columns) * CELL, (index // columns) * (CELL + _TEXT)))
    said = f"{config.name}: {len(cells)} regions; passed over: {failed or 'none'}"
    ImageDraw.Draw(sheet).text((4, lines * (CELL + _TEXT) + 4), said[:160], "black", ImageFont.load_default())
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _first_regions(config: SourceConfig, limit: int) -> tuple[list[Region], dict[str, int]]:
    """The first good regions, and how many records before them had which reason."""
    listed = list_media(config)
    good: list[Region] = []
    failed: dict[str, int] = {}
    for raw in _slices(config):
        names = pl.Series(raw["uri"].to_pylist()).unique()
        frame = pl.DataFrame(pl.from_arrow(listed)).filter(pl.col("uri").is_in(names.implode()))
        stage = ProbeStage(config.storage_options)
        probed = [pl.DataFrame(pl.from_arrow(table)) for table in checked(stage, probe_units(frame.to_arrow()))]
        for region in from_table(Finisher(config, pl.concat(probed)).finish(raw), Region) if probed else []:
            if region.status == "ok":
                good.append(region)
            else:
                failed[str(region.reason)] = failed.get(str(region.reason), 0) + 1
        if len(good) >= limit:
            break
    return good[:limit], failed


def _slices(config: SourceConfig) -> Iterator[Any]:
    """The records in small tables, so that few media are opened; not more than the first few thousand."""
    seen = 0
    for table in adapter_of(config).regions(open_source(config)):
        for start in range(0, len(table), 32):
            yield table.slice(start, 32)
        seen += len(table)
        if seen >= _SCANNED_RECORDS:
            return


def _cell(region: Region, storage_options: dict[str, Any]) -> Image.Image:
    try:
        pixels = _frame(region, storage_options)
    except UnitError as error:
        cell = Image.new("RGB", (CELL, CELL + _TEXT), "lightgrey")
        ImageDraw.Draw(cell).text((4, 4), str(error)[:60], "black", ImageFont.load_default())
        return cell
    drawn = _drawn(pixels, region)
    scale = min(CELL / drawn.shape[1], CELL / drawn.shape[0])
    size = (max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale)))
    cell = Image.new("RGB", (CELL, CELL + _TEXT), "white")
    cell.paste(Image.fromarray(drawn).resize(size, Image.Resampling.BILINEAR), (0, 0))
    text = region.label or next((hint.text for hint in region.hints), "")
    place = f" @{region.frame_index}" if region.kind == "video" else ""
    said = textwrap.wrap(f"{region.source_id}{place}: {text}".encode("latin-1", "replace").decode("latin-1"), 50)[:2]
    ImageDraw.Draw(cell).multiline_text((4, CELL + 4), "\n".join(said), "black", ImageFont.load_default())
    return cell


def _frame(region: Region, storage_options: dict[str, Any]) -> Pixels:
    if region.kind == "image":
        return load_image(region.uri, storage_options)
    from stages.media.video import open_video

    video = open_video(region.uri, storage_options=storage_options)
    try:
        return np.asarray(video.frames([region.frame_index])[0])
    finally:
        video.close()


def _drawn(pixels: Pixels, region: Region) -> Pixels:
    out = pixels.copy()
    inside = np.zeros(out.shape[:2], np.uint8)
    if region.mask is not None:
        inside |= rle.decode(*rle.runs_of(region.mask.model_dump())).astype(np.uint8)
    for ring in region.polygons or []:
        cv2.fillPoly(inside, [np.asarray(ring, np.float64).reshape(-1, 2).round().astype(np.int32)], 1)
    tinted = (0.5 * out + 0.5 * np.asarray(_COLOUR)).astype(np.uint8)
    out = np.where(inside[:, :, None] > 0, tinted, out)
    width = max(1, round(max(out.shape[:2]) / 200))
    if region.box is not None:
        x0, y0, x1, y1 = (round(value) for value in region.box)
        cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), _COLOUR, width)
    for point in region.points or []:
        colour = (32, 220, 32) if point.label else (220, 32, 220)
        cv2.circle(out, (round(point.x), round(point.y)), 3 * width, colour, -1)
    return np.asarray(out, np.uint8)
