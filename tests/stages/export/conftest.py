"""The corpus of the packing tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from schemas.keys import digest_value

_spec = importlib.util.spec_from_file_location(
    "pack_fixtures", Path(__file__).resolve().parents[1] / "pack" / "conftest.py"
)
_pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_pack)

corpus = _pack.corpus
new_corpus = _pack.new_corpus


@pytest.fixture
def explained(new_corpus):
    """One picture with one region that has all image tasks in both languages, and a clip with a stream."""
    made = new_corpus("explained")
    media = made.add(0, num_regions=1)
    region = made.regions[0].region_key
    for language, label, definition, function in (
        ("en", "dog", "A domesticated canine", "It guards the yard."),
        ("zh", "狗", "一种驯养的犬科动物", "它看守院子。"),
    ):
        made.add_caption(region, media, language, label, "label")
        made.add_caption(region, media, language, f"{label} …", "explain")
        made.captions[-1] = made.captions[-1].model_copy(
            update={"label": label, "definition": definition, "function": function}
        )
        made.add_caption(region, media, language, f'{label} {{x}} \\n "quoted"', "detailed")
    made.add_clip(1, num_frames=40)
    return made


@pytest.fixture
def streamed(new_corpus):
    """A clip of a square that moves right, told in four English events of ten frames, and a caption of the whole."""
    made = new_corpus("streamed")
    clip = made.add_clip(1, num_frames=40, languages=())
    first = made.events[0]
    made.events = [
        first.model_copy(
            update={
                "event_key": digest_value([first.region_key, index]),
                "event_index": index,
                "num_events": 4,
                "start_frame": 10 * index,
                "end_frame": 10 * index + 9,
                "start_s": float(index),
                "end_s": float(index + 1),
            }
        )
        for index in range(4)
    ]
    made.add_caption(first.region_key, clip, "en", "whole clip", "video")
    for index in range(4):
        made.add_caption(first.region_key, clip, "en", f"event {index}", "stream", index)
    return made


@pytest.fixture
def hidden():
    """Takes the target of a corpus's clip out of sight over some frames."""

    def hide(made, frames):
        at = next(index for index, mask in enumerate(made.masks) if mask.frames)
        nothing = {"visible": False, "mask": None, "box": None}
        made.masks[at] = made.masks[at].model_copy(
            update={
                "frames": [
                    each.model_copy(update=nothing) if each.frame_index in frames else each
                    for each in made.masks[at].frames
                ]
            }
        )

    return hide
