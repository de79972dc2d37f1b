"""Run lengths as annotation files carry them, checked before anything decodes them.

COCO run lengths go column by column, outside first. `counts` is a list, or COCO's compressed string: little-endian
groups of 5 bits plus 48, bit 5 set while more follow, the sign in bit 4 of the last, and from the fourth run on the
difference to the run two before (https://github.com/cocodataset/cocoapi, `common/maskApi.c`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Runs = NDArray[np.int64]


class EmptyMask(ValueError):
    """Run lengths with nothing inside."""


def runs_of(segmentation: Any) -> tuple[Runs, int, int]:
    """Run lengths, height and width of `{"size": [h, w], "counts": list | str}`.

    Raises `ValueError` when the value has another form or the runs do not fill the size exactly.
    """
    if not isinstance(segmentation, dict):
        raise ValueError(f"expected run lengths with size and counts, found {segmentation!r:.60}")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(item, int | float) for item in size):
        raise ValueError(f"run lengths need size [height, width], found {size!r:.60}")
    if not all(0 < item < 1 << 20 and item == int(item) for item in size):
        raise ValueError(f"run lengths of the impossible size {size!r:.60}")
    height, width = int(size[0]), int(size[1])
    if isinstance(counts, str | bytes):
        runs = _from_string(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    elif isinstance(counts, list):
        runs = _from_list(counts)
    else:
        raise ValueError(f"run lengths need counts as a list or a string, found {type(counts).__name__}")
    if len(runs) and int(runs.min()) < 0:
        raise ValueError("a run length is negative")
    if int(runs.sum()) != height * width:
        raise ValueError(
            f"the run lengths cover {int(runs.sum())} pixels, the size {height}x{width} has {height * width}"
        )
    return runs, height, width


def _from_list(counts: list[Any]) -> Runs:
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in counts):
        raise ValueError("the list of run lengths holds something that is no number")
    array = np.asarray(counts, np.float64)
    if not np.isfinite(array).all() or (np.abs(array) > 1 << 40).any() or (array != np.floor(array)).any():
        raise ValueError("the list of run lengths holds numbers that are no pixel counts")
    return array.astype(np.int64)


def _from_string(counts: bytes) -> Runs:
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if len(groups) == 0:
        return np.zeros(0, np.int64)
    if int(groups.min()) < 0 or int(groups.max()) > 63:
        raise ValueError("the compressed run lengths hold a character that does not occur in such")
    last = (groups & 0x20) == 0
    if not last[-1]:
        raise ValueError("the compressed run lengths end in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if int(lengths.max()) > 8:
        raise ValueError("the compressed run lengths hold a number beyond 40 bits")
    place = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & 0x1F) << (5 * place), starts)
    values = np.where(groups[ends] & 0x10, values - (np.int64(1) << (5 * lengths)), values)
    values[1::2] = np.cumsum(values[1::2])
    if len(values) > 2:
        values[2::2] = np.cumsum(values[2::2])
    return values


def compress(runs: Runs) -> str:
    """COCO's compressed string of run lengths."""
    delta = runs.astype(np.int64).copy()
    delta[3:] -= runs[1:-2]
    out = bytearray()
    for value in delta.tolist():
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != -1 if group & 0x10 else value != 0
            out.append((group | 0x20 if more else group) + 48)
    return out.decode("ascii")


def box_of_runs(runs: Runs, height: int) -> list[float] | None:
    """The xyxy box (exclusive maximum edges) of the inside of run lengths; None where nothing is inside."""
    edges = np.cumsum(runs)
    first, end = edges[0::2], edges[1::2]
    first = first[: len(end)]
    inside = end > first
    first, last = first[inside], end[inside] - 1
    if len(first) == 0:
        return None
    left, right = int(first[0] // height), int(last[-1] // height)
    if (first // height != last // height).any():
        top, bottom = 0, height - 1  # a run that goes on in the next column touches both edges
    else:
        top, bottom = int((first % height).min()), int((last % height).max())
    return [float(left), float(top), float(right + 1), float(bottom + 1)]


def decode(runs: Runs, height: int, width: int) -> NDArray[np.bool_]:
    """The mask (H, W) of run lengths."""
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def record(segmentation: Any) -> dict[str, Any]:
    """The mask as our `Rle` record's fields. Raises `ValueError` as `runs_of` does, and `EmptyMask`."""
    runs, _, _ = runs_of(segmentation)
    if not runs[1::2].any():
        raise EmptyMask("no pixel is inside the mask")
    return of_runs(segmentation, runs)


def of_runs(segmentation: dict[str, Any], runs: Runs) -> dict[str, Any]:
    """Run lengths that `runs_of` has read, as our `Rle` record's fields; a compressed string is kept as it is."""
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    return {"size": (int(height), int(width)), "counts": counts if isinstance(counts, str) else compress(runs)}


def of_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as our `Rle` record's fields."""
    coded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": (mask.shape[0], mask.shape[1]), "counts": coded["counts"].decode("ascii")}
