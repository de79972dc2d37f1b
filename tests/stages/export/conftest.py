"""The corpus of the packing tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

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
