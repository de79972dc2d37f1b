"""Perceptual-duplicate groups: media whose 64-bit hashes lie within a few bits of a group's founder.

A group is named by the media key of its first member and never changes: media that come later join the nearest
founder within `distance`, or found their own group. Where the founder was taken down, the first member that is left
stands for it. Splits and benchmark guards go by group, so that a photo and its resized copy never end on two sides.

Nearness is to the founder and is no chain: of A ~ B ~ C, where A and C differ in too many bits, B is in the group of
the one that came first, and the other founds its own.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import polars as pl

DISTANCE = 4
_MAX_DISTANCE = 7


def assign_groups(media: pl.DataFrame, distance: int = DISTANCE) -> pl.DataFrame:
    """`media` with `group_key` filled: columns `media_key`, `phash` (int64, null for none), `group_key` (null if new).

    Rows that have a group keep it, as founders or members; new rows are taken in order of their media key, so that the
    outcome does not depend on the order in which files were listed. A media without a hash, or with a hash of nearly
    no structure (a blank picture), is its own group. Hashes are cut into `distance` + 1 bands: hashes within the
    distance agree in at least one of them, so that no pair is missed and only the buckets of equal bands are compared.
    Raises `ValueError` for a distance outside 0..7.
    """
    if not 0 <= distance <= _MAX_DISTANCE:
        raise ValueError(f"distance {distance}: must be in 0..{_MAX_DISTANCE}")
    known = media.filter(pl.col("group_key").is_not_null())
    index = _Founders(distance)
    for key, phash in _standing_for(known).iter_rows():
        index.add(key, phash)
    fresh = media.filter(pl.col("group_key").is_null()).unique("media_key").sort("media_key")
    assigned: dict[bytes, bytes] = {}
    for key, phash in fresh.select("media_key", "phash").iter_rows():
        group = index.nearest(phash) if phash is not None and _structured(phash) else None
        assigned[key] = group or key
        if group is None and phash is not None and _structured(phash):
            index.add(key, phash)
    found = pl.DataFrame(
        {"media_key": list(assigned), "_group": list(assigned.values())},
        schema={"media_key": pl.Binary, "_group": pl.Binary},
    )
    joined = media.join(found, on="media_key", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("group_key", "_group").alias("group_key")).drop("_group")


def _standing_for(known: pl.DataFrame) -> pl.DataFrame:
    """`group_key` and the hash by which it is found: its founder's, or that of the first member that is left."""
    hashed = known.filter(pl.col("phash").is_not_null())
    first = hashed.sort("group_key", pl.col("media_key") != pl.col("group_key"), "media_key")
    return first.unique("group_key", keep="first", maintain_order=True).select("group_key", "phash")


def _structured(phash: int) -> bool:
    """Whether a hash says anything: blank pictures hash to almost no set bits and would all be one group."""
    return 4 <= (phash & 0xFFFFFFFFFFFFFFFF).bit_count() <= 60


class _Founders:
    """Founders by exact hash, and by each of its bands for the near ones; hashes lie in one growing array."""

    def __init__(self, distance: int) -> None:
        self._distance = distance
        self._keys: list[bytes] = []
        self._hashes = np.empty(1024, np.uint64)
        self._exact: dict[int, int] = {}
        self._bits = 64 // (distance + 1)
        self._bands: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in range(distance + 1)]

    def _band(self, value: int, band: int) -> int:
        return (value >> (band * self._bits)) & ((1 << self._bits) - 1)

    def add(self, key: bytes, phash: int) -> None:
        value, row = phash & 0xFFFFFFFFFFFFFFFF, len(self._keys)
        if row == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[row] = value
        self._keys.append(key)
        if value not in self._exact:
            self._exact[value] = row
            for band, buckets in enumerate(self._bands):
                buckets[self._band(value, band)].append(row)

    def nearest(self, phash: int) -> bytes | None:
        """The founder with the fewest differing bits within the distance; the earliest of equals."""
        value = phash & 0xFFFFFFFFFFFFFFFF
        if value in self._exact:
            return self._keys[self._exact[value]]
        best: tuple[int, int] | None = None
        for band, buckets in enumerate(self._bands):
            rows = buckets.get(self._band(value, band))
            if not rows:
                continue
            bits = np.bitwise_count(self._hashes[rows] ^ np.uint64(value))
            at = int(bits.argmin())
            if bits[at] <= self._distance and (best is None or (int(bits[at]), rows[at]) < best):
                best = (int(bits[at]), rows[at])
        return self._keys[best[1]] if best else None
