"""What rules that compare regions are told of the others of a media is bounded."""

from __future__ import annotations

import polars as pl

from pipeline import corpus
from schemas.arrow import to_table
from schemas.caption import Caption
from schemas.event import Event
from schemas.keys import digest_value


def test_a_crowded_media_tells_each_region_of_a_bounded_number_of_others() -> None:
    count = 4 * corpus.MOST_OTHERS
    captions = [
        Caption(
            caption_key=digest_value(["c", i]), region_key=digest_value(["r", i]), media_key=digest_value("m"),
            task="brief", language="en", text=f"caption {i}", teacher="t", model="m", prompt_id="p",
            prompt_hash=bytes(16), input_digest=bytes(16), digest=digest_value(i),
        )
        for i in range(count)
    ]  # fmt: skip
    regions = pl.DataFrame({"region_key": [row.region_key for row in captions]}, schema={"region_key": pl.Binary})
    regions = regions.with_columns(media_key=pl.lit(digest_value("m")), label=pl.lit("dog"))
    events = pl.DataFrame(pl.from_arrow(to_table([], Event)))
    told = pl.DataFrame(pl.from_arrow(to_table(captions, Caption)))
    frame = corpus.score_frame(told, regions, events, neighbour_texts=True)
    sizes = frame["neighbour_texts"].list.len()
    assert (sizes.min(), sizes.max()) == (corpus.MOST_OTHERS - 1, corpus.MOST_OTHERS)
    assert not frame.select(pl.col("neighbour_texts").list.contains(pl.col("text")).any()).item()
    again = corpus.score_frame(told.reverse(), regions, events, neighbour_texts=True)
    kept = ["caption_key", "neighbour_texts"]
    assert frame.select(kept).sort("caption_key").equals(again.select(kept).sort("caption_key"))
