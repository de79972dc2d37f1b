"""Seeded draws: a number for each key that depends on the seed and the key alone, in every version of every library."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from schemas.keys import digest_columns


def drawn(keys: pl.Series, seed: int) -> pl.Series:
    """The first eight bytes of H(seed, key) of each key: in the order of these numbers rows are as if shuffled."""
    digests = digest_columns({"seed": pa.repeat(seed, len(keys)), "key": keys.to_arrow()})
    return pl.Series("draw", np.frombuffer(b"".join(digests.to_pylist()), "<u8")[::2].copy(), dtype=pl.UInt64)
