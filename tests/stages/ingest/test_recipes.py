"""The table of sources: complete, within its totals, and what it says of hints holds."""

from __future__ import annotations

from collections import Counter

from stages.ingest.base import SourceConfig
from stages.ingest.recipes import recipes, with_recipe
from stages.ingest.sources import formats


def test_every_format_has_a_recipe_and_the_targets_are_the_papers_totals():
    table = recipes()
    assert set(table) == set(formats())
    assert {name: set(recipe.benchmarks) for name, recipe in table.items()} == {
        name: set(adapter.benchmark_splits) for name, adapter in formats().items()
    }
    totals: Counter[str] = Counter()
    for recipe in table.values():
        totals[recipe.kind] += recipe.target
    assert totals == {"image": 1_500_000, "video": 600_000}


def test_tasks_fit_the_kind_of_media():
    for recipe in recipes().values():
        video = {"video", "stream"}
        assert set(recipe.tasks) <= video if recipe.kind == "video" else not video & set(recipe.tasks)


def test_a_recipe_fills_in_what_a_source_leaves_open():
    bare = SourceConfig(format="lvis", annotations="a.json")
    recipe = recipes()["lvis"]
    assert with_recipe(bare, recipe).captions.tasks == ("label", "explain")
    assert with_recipe(bare, recipe).captions.hints == ("label", "definition")
    assert with_recipe(bare, recipe).licence == "CC-BY-4.0"
    assert with_recipe(bare, recipe, tasks=False).captions.tasks is None
    own = SourceConfig(
        format="lvis", annotations="a.json", licence="mine", captions={"tasks": ["brief"], "hints": ["label"]}
    )
    assert with_recipe(own, recipe) == own
    assert with_recipe(SourceConfig(format="regions", annotations="a"), recipes()["regions"]).captions.tasks is None
