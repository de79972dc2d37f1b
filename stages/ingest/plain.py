"""Annotations of the COCO family by whole columns, for the many in which nothing is odd.

An annotation is plain where its id is a number, its image and category are known, its box is a list, its segmentation
a list of polygons or absent, and no field of its flavour asks for more. A batch with a value in it that does not fit
its column is left to `stages.ingest.coco.annotation_row`, which says of each record what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from stages.ingest.base import RAW_SCHEMA, UNFIT, checked_array, raw_table


class ImageFacts(Protocol):
    """What an annotation takes from its image."""

    @property
    def uri(self) -> str: ...
    @property
    def media_id(self) -> str: ...
    @property
    def width(self) -> float | None: ...
    @property
    def height(self) -> float | None: ...


class PlainAnnotations:
    """The columns that images and categories give to the annotations that name them, and plain annotations' own."""

    def __init__(
        self,
        images: Mapping[Any, ImageFacts],
        categories: Mapping[Any, tuple[str, list[dict[str, str]]]],
        odd_keys: Sequence[str] = (),
    ) -> None:
        """`odd_keys`: an annotation that has one of these, and not empty, is not plain."""
        self._odd_keys = tuple(odd_keys)
        self._image = {key: at for at, key in enumerate(images)}
        self._category = {key: at for at, key in enumerate(categories)}
        entries = list(images.values())
        self._of_image = {
            "uri": _column("uri", [entry.uri for entry in entries]),
            "source_media_id": _column("source_media_id", [entry.media_id for entry in entries]),
            "width": _column("width", [entry.width for entry in entries]),
            "height": _column("height", [entry.height for entry in entries]),
        }
        self._of_category = {
            "label": _column("label", [label for label, _ in categories.values()]),
            "hints": _column("hints", [hints for _, hints in categories.values()]),
        }

    def plain(self, entry: Any) -> bool:
        """Whether an annotation is plain."""
        if type(entry) is not dict:
            return False
        get = entry.get
        image, category, segmentation = get("image_id"), get("category_id"), get("segmentation")
        return (
            type(get("id")) is int
            and type(image) is int
            and image in self._image
            and type(category) is int
            and category in self._category
            and type(get("bbox")) is list
            and (segmentation is None or (type(segmentation) is list and all(map(_is_ring, segmentation))))
            and not any(map(get, self._odd_keys))
        )

    def table(self, entries: Sequence[dict[str, Any]]) -> pa.Table | None:
        """Plain annotations as a table of `RAW_SCHEMA`; None where a value does not fit its column."""
        try:
            image = pa.array([self._image[entry["image_id"]] for entry in entries], pa.int32())
            category = pa.array([self._category[entry["category_id"]] for entry in entries], pa.int32())
            own = {
                "source_id": pa.array([entry["id"] for entry in entries], pa.int64()).cast(pa.string()),
                "box": _boxes([entry["bbox"] for entry in entries]),
                "polygons": _column("polygons", [entry.get("segmentation") or None for entry in entries]),
                "is_crowd": pa.array([bool(entry.get("iscrowd")) for entry in entries], pa.bool_()),
            }
        except UNFIT:
            return None
        own |= {name: column.take(image) for name, column in self._of_image.items()}
        own |= {name: column.take(category) for name, column in self._of_category.items()}
        return raw_table(len(entries), own)


def merged(plain: pa.Table, odd: Iterator[pa.Table], is_plain: Sequence[bool]) -> pa.Table:
    """Both kinds of records in the order of the file."""
    if len(plain) == len(is_plain):
        return plain
    at = np.asarray(is_plain, bool)
    order = np.empty(len(at), np.int64)
    order[at] = np.arange(int(at.sum()))
    order[~at] = int(at.sum()) + np.arange(int((~at).sum()))
    return pa.concat_tables([plain, *odd]).take(pa.array(order))


def _is_ring(value: Any) -> bool:
    return type(value) is list and len(value) >= 6 and not len(value) % 2


def _column(name: str, values: list[Any]) -> pa.Array:
    return checked_array(values, RAW_SCHEMA.field(name).type)


def _boxes(values: list[list[Any]]) -> pa.Array:
    """xyxy boxes of `[x, y, width, height]` lists. Raises one of `UNFIT`."""
    corners = np.array(checked_array(values, pa.list_(pa.float64(), 4)).flatten()).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    offsets = pa.array(np.arange(0, 4 * len(values) + 1, 4, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(corners.ravel())).cast(RAW_SCHEMA.field("box").type)
