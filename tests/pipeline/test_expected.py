"""The recipes for the corpora add up to the paper's totals, ask no source for more than it has, and can be planned."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.config import BUILT_IN, EngineConfig, load_config
from pipeline.expected import expected_size, plan_expected
from pipeline.settings import ConfigError
from stages.ingest.recipes import recipes
from stages.ingest.sources import adapter_of

KEPT = 0.8
CORPORA = {"image": 1_500_000, "video": 600_000}


def corpus(kind: str, *overrides: str) -> EngineConfig:
    return load_config(BUILT_IN / f"corpus_{kind}.yaml", overrides)


@pytest.mark.parametrize("kind", CORPORA)
def test_the_sources_of_a_corpus_give_the_targets_of_their_recipes(kind):
    config, table, kept = corpus(kind), recipes(), Counter()
    for source in config.sources:
        adapter_of(source)
        recipe = table[source.format]
        wanted = config.select.per_source[source.name]
        assert recipe.regions is None or wanted <= recipe.regions
        assert source.captions.tasks == recipe.tasks
        kept[source.format] += wanted * len(recipe.tasks) * len(config.captions.languages) * KEPT
    assert kept == {name: recipe.target for name, recipe in table.items() if recipe.kind == kind and recipe.target}
    assert sum(kept.values()) == CORPORA[kind]


@pytest.mark.parametrize("kind", CORPORA)
def test_a_corpus_is_planned_without_its_files(kind):
    config = corpus(kind)
    plan = plan_expected(config, sample=2)
    regions = sum(config.select.per_source.values())
    languages = len(config.captions.languages)
    assert plan.rows["regions selected"] == regions
    assert plan.rows["regions read"] > regions
    counted = Counter({task.task: 0 for task in plan.tasks})
    for task in plan.tasks:
        assert task.sampled > 0
        assert task.prompt_tokens.likely > 0
        counted[task.task] += task.captions
    if kind == "image":
        assert sum(counted.values()) == 2 * regions * languages
    else:
        assert counted["video"] == regions * languages
        assert counted["stream"] == plan.rows["events"] * languages
    assert plan.online_usd.low < plan.online_usd.likely < plan.online_usd.high
    assert sum(local.hours.likely for local in plan.local if local.hours) > 0.5
    assert min(plan.disk.tables, plan.disk.shards, plan.disk.sources) > 1e9
    assert "published" in plan.warnings[0]


def test_a_total_scales_the_plan_and_a_size_that_nobody_knows_is_an_error(tmp_path):
    whole, half = (plan_expected(corpus("image", *more), sample=1) for more in ([], ["select.total=234375"]))
    assert half.rows["regions selected"] == pytest.approx(whole.rows["regions selected"] / 2, abs=10)
    (tmp_path / "run.yaml").write_text("run: run\nsources: [{format: regions, annotations: mine.jsonl}]\n")
    mine = load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="regions_train"):
        expected_size(mine.sources[0], recipes()["regions"], mine)
