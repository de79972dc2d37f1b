"""The table of sources: complete, within its totals, and what it says of hints holds."""

from __future__ import annotations

from collections import Counter

from schemas.region import Hint
from stages.ingest.recipes import recipes, told
from stages.ingest.sources import formats


def test_every_format_has_a_recipe_and_the_targets_are_the_papers_totals():
    table = recipes()
    assert set(table) == set(formats())
    totals: Counter[str] = Counter()
    for recipe in table.values():
        totals[recipe.kind] += recipe.target
    assert totals == {"image": 1_500_000, "video": 600_000}


def test_tasks_fit_the_kind_of_media():
    for recipe in recipes().values():
        video = {"video", "stream"}
        assert set(recipe.tasks) <= video if recipe.kind == "video" else not video & set(recipe.tasks)


def test_the_teacher_is_told_the_kinds_of_the_recipe_once_each():
    hints = [
        Hint(kind="attribute", language="en", text="red"),
        Hint(kind="definition", language="en", text="a vessel"),
        Hint(kind="label", language="en", text="cup"),
        Hint(kind="label", language="en", text="cup"),
    ]
    assert [hint.text for hint in told(hints, recipes()["lvis"])] == ["cup", "a vessel"]
    assert told(hints, recipes()["sav"]) == []
