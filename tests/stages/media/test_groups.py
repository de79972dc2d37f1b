"""Perceptual-duplicate groups: near hashes share a group, and a group given once stays."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.media.groups import assign_groups

HASHES = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=30)


def frame(hashes: list[int | None], start: int = 0) -> pl.DataFrame:
    keys = [(start + index).to_bytes(16, "big") for index in range(len(hashes))]
    return pl.DataFrame(
        {"media_key": keys, "phash": hashes, "group_key": [None] * len(keys)},
        schema={"media_key": pl.Binary, "phash": pl.Int64, "group_key": pl.Binary},
    )


def flipped(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value - (1 << 64) if value >= 1 << 63 else value


def test_near_hashes_join_the_founder_and_far_ones_do_not():
    base = 0x0F0F33335555AAAA
    groups = assign_groups(frame([base, flipped(base, [0, 13, 40, 63]), flipped(base, [0, 1, 2, 3, 4]), None, None]))
    keys = groups["media_key"].to_list()
    assert groups["group_key"].to_list() == [keys[0], keys[0], keys[2], keys[3], keys[4]]


def test_a_copy_joins_a_group_whose_founder_was_taken_down():
    base = 0x0F0F33335555AAAA
    before = assign_groups(frame([base, flipped(base, [0]), flipped(base, [1])]))
    founder = before["media_key"][0]
    left = before.filter(pl.col("media_key") != founder)
    after = assign_groups(pl.concat([left, frame([flipped(base, [0]), flipped(base, [2, 3])], start=1000)]))
    assert after["group_key"].to_list() == [founder] * 4


def test_nearness_is_to_the_founder_and_no_chain():
    base = 0x0F0F33335555AAAA
    groups = assign_groups(frame([base, flipped(base, [0, 1, 2]), flipped(base, [0, 1, 2, 3, 4, 5])]))
    keys = groups["media_key"].to_list()
    assert groups["group_key"].to_list() == [keys[0], keys[0], keys[2]]


def test_blank_pictures_are_not_one_group():
    groups = assign_groups(frame([0, 1, 0]))
    assert groups["group_key"].n_unique() == 3


@settings(deadline=None, max_examples=50)
@given(HASHES, HASHES)
def test_groups_never_change_when_media_are_added(first, second):
    before = assign_groups(frame(first))
    after = assign_groups(pl.concat([before, frame(second, start=1000)]))
    assert after["group_key"].null_count() == 0
    assert after.head(len(before))["group_key"].to_list() == before["group_key"].to_list()


@settings(deadline=None, max_examples=50)
@given(HASHES)
def test_members_lie_within_the_distance_of_their_founder_and_founders_beyond_it(hashes):
    groups = assign_groups(frame(hashes), distance=4)
    phash = dict(groups.select("media_key", "phash").iter_rows())
    founders = []
    for key, group in groups.select("media_key", "group_key").iter_rows():
        distance = ((phash[key] ^ phash[group]) & 0xFFFFFFFFFFFFFFFF).bit_count()
        assert distance <= 4
        if key == group and 4 <= (phash[key] & 0xFFFFFFFFFFFFFFFF).bit_count() <= 60:
            founders.append(phash[key] & 0xFFFFFFFFFFFFFFFF)
    pairs = [(a ^ b).bit_count() for i, a in enumerate(founders) for b in founders[:i]]
    assert all(distance > 4 for distance in pairs)


def test_every_planted_copy_among_twenty_thousand_is_found():
    rng = np.random.default_rng(0)
    values = rng.integers(-(1 << 63), (1 << 63) - 1, 10_000, np.int64)
    copies = [flipped(int(v) & 0xFFFFFFFFFFFFFFFF, rng.choice(64, 3, replace=False).tolist()) for v in values]
    groups = assign_groups(frame([*values.tolist(), *copies]))["group_key"].to_list()
    assert groups[:10_000] == groups[10_000:]
