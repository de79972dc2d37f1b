"""Mask algebra: COCO run-length masks, boxes, parts, holes, and the DAVIS measures J, F and J&F.

Masks are boolean arrays (height, width) or `Rle` records; both are taken wherever a `MaskLike` is asked for. Boxes are
xyxy float pixels with exclusive maximum edges: a mask of the single pixel (x, y) has the box (x, y, x + 1, y + 1).

J and F follow F. Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
CVPR 2016 (https://davischallenge.org): J is the IoU of the regions, F the F-measure of their boundaries matched
within 0.008 of the image's diagonal. Two empty masks agree perfectly (1.0) in every measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from schemas.base import Box
from schemas.geometry import Rle

MaskArray = NDArray[np.bool_]
MaskLike = MaskArray | Rle

BOUNDARY_TOLERANCE = 0.008
"""Of the image's diagonal, as DAVIS defines it."""


def encode(mask: NDArray[np.generic]) -> Rle:
    """The COCO compressed run lengths of a mask (H, W): non-zero is inside. Raises `ValueError` for other ranks."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions, this one has the shape {mask.shape}")
    height, width = mask.shape
    box = box_of(mask != 0)
    if box is None:
        return Rle(size=(height, width), counts=_compressed(np.array([height * width])))
    x0, y0, x1, y1 = (int(edge) for edge in box)
    return encode_crop(mask[y0:y1, x0:x1] != 0, x0, y0, height, width)


def encode_crop(crop: MaskArray, left: int, top: int, height: int, width: int) -> Rle:
    """The run lengths of a mask (height, width) that is empty outside `crop`, which lies at (left, top).

    Costs by the size of the crop, not of the image, and most of it outside Python's global lock.
    """
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), np.int8)
    columns[:, 1:-1] = crop.T
    steps = np.diff(columns, axis=1)
    origin = (left + np.arange(crop.shape[1]))[:, None] * height + top
    at = origin + np.arange(crop.shape[0] + 1)
    starts, ends = at[steps == 1], at[steps == -1]
    joined = ends[:-1] == starts[1:]  # a run over the foot of one column and the head of the next is one run
    starts, ends = starts[np.r_[True, ~joined][: len(starts)]], ends[np.r_[~joined, True][: len(ends)]]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    return Rle(size=(height, width), counts=_compressed(counts if counts[-1] else counts[:-1]))


def decode(rle: Rle) -> MaskArray:
    """The mask (H, W) of run lengths. Raises `ValueError` when the runs do not fill height x width exactly."""
    height, width = rle.size
    counts = runs(rle)
    if sum(counts) != height * width:
        raise ValueError(f"the run lengths cover {sum(counts)} pixels, the size {rle.size} has {height * width}")
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def runs(rle: Rle) -> list[int]:
    """The run lengths (outside first, column by column) behind COCO's compressed string.

    The format: little-endian groups of 5 bits plus 48, bit 5 set while more follow, the sign in bit 4 of the last;
    from the fourth run on, the difference to the run two before. Raises `ValueError` for a string that is not such.
    """
    counts: list[int] = []
    value = shift = 0
    more = False
    for byte in rle.counts.encode("ascii", "replace"):
        group = byte - 48
        if not 0 <= group < 64:
            raise ValueError(f"character {chr(byte)!r} does not occur in compressed run lengths")
        value |= (group & 0x1F) << shift
        shift += 5
        more = bool(group & 0x20)
        if not more:
            if group & 0x10:
                value |= -1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if more or any(count < 0 for count in counts):
        raise ValueError("the compressed run lengths are cut off or hold a negative run")
    return counts


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    """The union of polygons (flat `x0, y0, x1, y1, ...` rings in pixels), rasterised as COCO does.

    Rings of fewer than three points have no inside and are passed over; raises `ValueError` when none is left.
    """
    rings = [[float(value) for value in ring] for ring in polygons if len(ring) >= 6 and len(ring) % 2 == 0]
    if not rings:
        raise ValueError("no polygon has three or more points")
    merged = coco.merge(coco.frPyObjects(rings, height, width))
    return Rle(size=(height, width), counts=merged["counts"].decode("ascii"))


def from_runs(counts: Sequence[int], height: int, width: int) -> Rle:
    """A mask from uncompressed run lengths (COCO's list form, outside first, column by column).

    Raises `ValueError` when a run is negative or the runs do not fill height x width.
    """
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"the run lengths cover {sum(counts)} pixels, {height}x{width} has {height * width}")
    coded = coco.frPyObjects({"counts": [int(c) for c in counts], "size": [height, width]}, height, width)
    return Rle(size=(height, width), counts=coded["counts"].decode("ascii"))


def from_box(box: Box, height: int, width: int) -> MaskArray:
    """The filled box: pixels whose centres lie inside it."""
    mask = np.zeros((height, width), np.bool_)
    x0, y0, x1, y1 = (int(np.ceil(edge - 0.5)) for edge in box)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def area(mask: MaskLike) -> int:
    """The number of pixels inside."""
    return int(coco.area(_coco(mask))) if isinstance(mask, Rle) else int(np.count_nonzero(mask))


def box_of(mask: MaskLike) -> Box | None:
    """The tight xyxy box of a mask, maximum edges exclusive; None for an empty mask."""
    if area(mask) == 0:
        return None
    if isinstance(mask, Rle):
        x, y, w, h = (float(value) for value in coco.toBbox(_coco(mask)))
        return (x, y, x + w, y + h)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def cropped(mask: MaskArray, box: Box) -> MaskArray:
    """The part of a mask (H, W) within a box of whole pixels, as a view."""
    x0, y0, x1, y1 = (int(edge) for edge in box)
    return mask[y0:y1, x0:x1]


def iou(a: MaskLike, b: MaskLike) -> float:
    """Intersection over union; 1.0 for two empty masks. Raises `ValueError` when the sizes differ."""
    if isinstance(a, Rle) and isinstance(b, Rle):
        _same_size(a.size, b.size)
        if area(a) == 0 and area(b) == 0:
            return 1.0
        return float(coco.iou([_coco(a)], [_coco(b)], [0])[0, 0])
    return jaccard(as_array(a), as_array(b))


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0.0 where the union has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = _box_area(a) + _box_area(b) - shared
    return shared / union if union > 0 else 0.0


def parts(mask: MaskLike) -> tuple[int, float]:
    """The number of 8-connected parts and the largest one's share of the area; (0, 0.0) for an empty mask."""
    array = as_array(mask)
    count, _, stats, _ = cv2.connectedComponentsWithStats(array.astype(np.uint8), connectivity=8)
    if count < 2:
        return 0, 0.0
    sizes = stats[1:, cv2.CC_STAT_AREA]
    return count - 1, float(sizes.max() / sizes.sum())


def fill_holes(mask: MaskArray, max_area: int | None = None) -> tuple[MaskArray, int]:
    """The mask with its holes of at most `max_area` pixels filled (all of them by default), and how many there were.

    A hole is a 4-connected part of the outside that does not touch the image's edge.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    small = np.ones(count, np.bool_) if max_area is None else stats[:, cv2.CC_STAT_AREA] <= max_area
    small[0] = False
    small[edge] = False
    return mask | small[labels], int(small.sum())


def resize(mask: MaskLike, height: int, width: int) -> MaskArray:
    """The mask at another size, by nearest neighbour (some published masks differ from their frame by a pixel)."""
    array = as_array(mask)
    if array.shape == (height, width):
        return array
    scaled = cv2.resize(array.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(scaled, dtype=np.bool_)


def jaccard(a: MaskArray, b: MaskArray) -> float:
    """DAVIS's J of one frame: intersection over union of two masks (H, W); 1.0 when both are empty."""
    _same_size(a.shape, b.shape)
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def boundary_f(prediction: MaskArray, truth: MaskArray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """DAVIS's F of one frame: the harmonic mean of boundary precision and recall.

    A boundary pixel matches when the other boundary comes within `tolerance` x the diagonal (rounded up to pixels;
    a tolerance of 1 or more is in pixels). 1.0 when both are empty, 0.0 when one is.
    """
    _same_size(prediction.shape, truth.shape)
    diagonal = float(np.hypot(*prediction.shape))
    radius = int(tolerance) if tolerance >= 1 else int(np.ceil(tolerance * diagonal))
    ours, theirs = _boundary(prediction), _boundary(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    disk = _disk(radius)
    precision = np.count_nonzero(ours & _dilate(theirs, disk)) / np.count_nonzero(ours)
    recall = np.count_nonzero(theirs & _dilate(ours, disk)) / np.count_nonzero(theirs)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def j_and_f(predictions: Sequence[MaskArray], truths: Sequence[MaskArray]) -> tuple[float, float, float]:
    """Mean J, mean F and their mean over the frames of one object. Raises `ValueError` for no or unequal frames."""
    if not truths or len(predictions) != len(truths):
        raise ValueError(f"{len(predictions)} predicted frames against {len(truths)} true ones")
    j = float(np.mean([jaccard(p, t) for p, t in zip(predictions, truths, strict=True)]))
    f = float(np.mean([boundary_f(p, t) for p, t in zip(predictions, truths, strict=True)]))
    return j, f, (j + f) / 2


def as_array(mask: MaskLike) -> MaskArray:
    """The mask as a boolean array (H, W)."""
    return decode(mask) if isinstance(mask, Rle) else mask


def compressed(counts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[str]:
    """COCO's compressed strings (see `runs`) of many masks' run lengths, one mask after another.

    `lengths` says how many of the counts are each mask's.
    """
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(counts)) - np.repeat(starts, lengths)
    values = counts.astype(np.int64)
    later = np.flatnonzero(place >= 3)
    values[later] -= counts[later - 2]
    groups = np.zeros((len(values), 8), np.uint8)
    used = np.zeros((len(values), 8), np.bool_)
    open_rows = np.ones(len(values), np.bool_)
    for index in range(8):
        low = values & 0x1F
        values >>= 5
        more = open_rows & np.where(low & 0x10, values != -1, values != 0)
        groups[:, index] = low + 48 + 0x20 * more
        used[:, index] = open_rows
        open_rows = more
        if not more.any():
            break
    text = groups[used].tobytes().decode("ascii")
    ends = np.concatenate([[0], np.cumsum(used.sum(1))])[np.concatenate([[0], np.cumsum(lengths)])].tolist()
    return [text[start:end] for start, end in pairwise(ends)]


def _compressed(counts: NDArray[np.int64]) -> str:
    return compressed(counts, np.array([len(counts)]))[0]


def _coco(rle: Rle) -> dict[str, object]:
    return {"size": list(rle.size), "counts": rle.counts.encode("ascii")}


def _same_size(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if tuple(a) != tuple(b):
        raise ValueError(f"masks of different sizes: {tuple(a)} and {tuple(b)} (height, width)")


def _box_area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _boundary(mask: MaskArray) -> MaskArray:
    """Pixels that differ from their right, lower or lower right neighbour; the image's edge is no boundary."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1, :] |= mask[:-1, :] ^ mask[1:, :]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def _disk(radius: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x * x + y * y <= radius * radius, dtype=np.uint8)


def _dilate(mask: MaskArray, kernel: NDArray[np.uint8]) -> MaskArray:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel), dtype=np.bool_)
