"""Streaming chains: frames that PAM's reader accepts, history that is the previous text, nothing behind a break."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.geometry import FrameMask
from stages.chunk.streaming import chain_statuses, event_frames, exported_length, history_before, history_text
from stages.masks import encode

MASK = encode(np.ones((2, 2), bool))


def masklet(visible: list[bool], step: int = 4) -> list[FrameMask]:
    return [
        FrameMask(
            frame_index=step * i,
            time_s=step * i / 24,
            visible=v,
            box=(0.0, 0.0, 1.0 + i, 2.0) if v else None,
            mask=MASK if v else None,
        )
        for i, v in enumerate(visible)
    ]


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(1, 4),
)
def test_what_is_listed_can_be_read_by_pam(visible: list[bool], start: int, length: int, step: int) -> None:
    frames = masklet(visible, step)
    end = start + length
    listed = event_frames(frames, start, end)
    shown = {f.frame_index: f for f in frames if f.visible and start <= f.frame_index <= end}
    assert (listed is None) == (not shown)
    if listed is None:
        return
    assert 16 <= len(listed.indices) <= 32
    assert listed.indices == sorted(listed.indices)
    assert listed.indices[0] == min(shown) == listed.prompt.frame_index
    assert listed.box == shown[listed.indices[0]].box
    assert listed.indices[-1] == end
    if end - listed.indices[0] + 1 >= 32:
        assert len(set(listed.indices)) == 32


def test_a_short_event_repeats_its_nearest_frames() -> None:
    listed = event_frames(masklet([True, True, True], step=1), 0, 2)
    assert listed is not None
    assert listed.indices == [0] * 4 + [1] * 8 + [2] * 4


def test_only_frames_of_the_shard_are_listed() -> None:
    frames = masklet([False, True, True, True, True, True])
    listed = event_frames(frames, 0, 20, available=[0, 2, 8, 11, 16, 20])
    assert listed is not None
    assert set(listed.indices) == {8, 11, 16, 20}
    assert listed.prompt.frame_index == 8
    assert event_frames(frames, 0, 20, available=[0, 1, 2, 3]) is None


def test_history_is_the_previous_text() -> None:
    told = {0: "A dog runs.", 1: "It stops.", 2: "It turns."}
    assert history_before(0, told) == []
    assert history_before(3, told) == ["It turns."]
    assert history_before(3, told, depth=2) == ["It stops.", "It turns."]
    with pytest.raises(KeyError):
        history_before(5, told)
    assert history_text([], "en") == "None"
    assert history_text([], "zh") == "无"
    assert history_text(["It stops.", "It turns."], "en") == "It stops. It turns."


def test_everything_behind_a_failure_is_blocked() -> None:
    assert chain_statuses(["ok", "failed", "ok", None]) == ["ok", "failed", "blocked", "blocked"]
    assert chain_statuses(["ok", "ok", None]) == ["ok", "ok", None]
    assert chain_statuses(["filtered", None]) == ["filtered", "blocked"]
    assert chain_statuses([]) == []


def test_a_chain_goes_out_up_to_its_first_rejected_event() -> None:
    for kept in itertools.product([True, False, None], repeat=4):
        length = exported_length(kept)
        assert all(kept[:length])
        assert length == 4 or not kept[length]
