"""Re-filtering: what a change of rules or policies makes again, by counts; what `perceive filter` says and leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.build import build, status
from pipeline.config import load_config
from pipeline.looking import open_corpus
from pipeline.output import decisions
from pipeline.tables import Run
from stages.score.text import Hedges

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_world: Callable[..., Any]) -> Any:
    built = make_world(tmp_path_factory.mktemp("requality"), images=4, seed=3)
    build(built.config())
    return built


def test_one_rule_of_a_group_changes_and_it_alone_is_scored_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_corpus(world.config()).score["text"].rows.sort("caption_key")
    captions = status(world.config())["distill"].ok
    with monkeypatch.context() as newer:
        newer.setattr(Hedges, "version", 2)
        changed = build(world.config())
        made = {name: rows for name, rows in changed.done.items() if name.startswith("score")}
        assert made == {"score/text/hedges": captions}
        assert not {name for name in changed.done if name.startswith(("refine", "distill", "chunk", "probe"))}
        after = open_corpus(world.config()).score["text"].rows.sort("caption_key")
        columns = [name for name in before.columns if name not in ("digest", "attempts")]
        assert after.select(columns).equals(before.select(columns))
        assert build(world.config()).rows == 0
        assert status(world.config())["score/text"].ok == captions
    assert "score/text" not in build(world.config()).done


def perceive(*args: object) -> dict[str, Any]:
    """What a command prints for machines."""
    result = CliRunner().invoke(app, [*(str(arg) for arg in args), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def files(world: Any) -> dict[str, tuple[int, int]]:
    run = Path(world.config().run)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def written(world: Any) -> dict[str, dict[str, int]]:
    """Rows by status that were ever committed, by table."""
    view = Run.open(world.config().run).view()
    return {table: dict(view.written(table)) for table in view.tables}


@pytest.fixture
def two_words(tmp_path: Path) -> Path:
    path = tmp_path / "two_words.yaml"
    path.write_text("name: two_words\nchecks:\n  - {reason: long, column: words, max: 2}\n", encoding="utf-8")
    return path


def test_a_dry_run_shows_the_difference_and_writes_nothing(world: Any, two_words: Path) -> None:
    build(world.config())
    before = files(world)
    shown = perceive("filter", world.path, "--policy", two_words, "--dry-run")
    assert shown["before"].startswith("default@")
    dropped = {(row["before"], row["after"], row["after_reason"]): row["captions"] for row in shown["changes"]}
    assert dropped["ok", "filtered", "long"] > 0
    assert shown["rows"] == {}
    assert files(world) == before
    assert perceive("filter", world.path, "--dry-run")["changes"] == []
    assert files(world) == before


def test_another_policy_scores_nothing_and_older_sets_can_be_named(world: Any, two_words: Path) -> None:
    build(world.config())
    captions = len(open_corpus(world.config()).captions)
    was = {name: table for name, table in written(world).items() if not name.startswith("decisions")}
    made = perceive("filter", world.path, "--policy", two_words)
    assert made["rows"] == {}
    assert made["captions"] == captions > made["kept"]
    assert {name: table for name, table in written(world).items() if not name.startswith("decisions")} == was
    assert {row["reason"]: row["hits"] for row in made["yield"]}["long"] == captions - made["kept"]
    scopes = made["kept_by"]["task"]
    assert sum(row["captions"] for row in scopes) == captions
    sets = perceive("decisions", world.path)
    assert [one["current"] for one in sets if one["name"].startswith("two_words@")] == [True]
    default = next(one["name"] for one in sets if one["name"].startswith("default@"))
    back = perceive("filter", world.path, "--policy", two_words, "--against", default, "--dry-run")
    assert back["before"] == default
    assert back["changes"]
    again = perceive("filter", world.path)
    assert again["before"].startswith("two_words@")
    assert len(perceive("decisions", world.path)) == len(sets)
    packed = perceive("pack", world.path, "--policy", two_words)
    assert set(packed["rows"]) <= {"pack"}
    assert packed["stages"]["pack"]["in"] == made["kept"]
    build(world.config())


def test_rules_that_are_off_say_that_they_did_not_run(world: Any) -> None:
    said = perceive("filter", world.path, "--dry-run")["did_not_run"]
    assert said["views_disagree"] == "off: configure score.judge"
    assert said["near_copy"] == "off: configure score.duplicates"
    assert said["unlike_its_crop"] == "off: configure score.crops"
    text = CliRunner().invoke(app, ["filter", str(world.path)]).stdout
    assert "views_disagree did not run: off: configure score.judge" in " ".join(text.split())


def test_a_persons_word_stands_above_every_policy(world: Any, tmp_path: Path) -> None:
    build(world.config())
    now = open_corpus(world.config())
    briefs = now.captions.filter(pl.col("task") == "brief").sort("caption_key")
    dropped, corrected = (key.hex() for key in briefs["caption_key"].head(2))
    sheet = tmp_path / "verdicts.csv"
    sheet.write_text(f"caption_key,verdict,correction\n{dropped},drop,\n{corrected},,A small shape on the grass.\n")
    done = CliRunner().invoke(app, ["review", "import", str(world.path), str(sheet), "--json"])
    assert done.exit_code == 0, done.output
    for name in ("default", "lenient"):
        perceive("filter", world.path, "--policy", f"policy/{name}.yaml")
        now = open_corpus(world.config(f"policy=policy/{name}.yaml"))
        fates = {row["caption_key"].hex(): row for row in decisions(now, now.policy).iter_rows(named=True)}
        assert (fates[dropped]["status"], fates[dropped]["reason"]) == ("filtered", "human")
        assert fates[corrected]["status"] == "ok"
    texts = {row["caption_key"].hex(): row["text"] for row in now.captions.iter_rows(named=True)}
    assert texts[corrected] == "A small shape on the grass."
    sheet.write_text(f"caption_key,verdict\n{dropped},keep\n")
    CliRunner().invoke(app, ["review", "import", str(world.path), str(sheet)])
    now = open_corpus(world.config())
    fates = {row["caption_key"].hex(): row["status"] for row in decisions(now, now.policy).iter_rows(named=True)}
    assert fates[dropped] == "ok"


def test_a_judged_sample_says_how_good_each_check_is_and_which_threshold_would_do(world: Any, tmp_path: Path) -> None:
    """The policy drops what has over 3 words; the people who judge the sample drop what has over the median."""
    policy, config = tmp_path / "long.yaml", world.folder / "long.yaml"
    policy.write_text("name: long\nchecks:\n  - {reason: long, column: words, max: 3}\n", encoding="utf-8")
    config.write_text(yaml.safe_dump({**world.settings, "policy": str(policy)}), encoding="utf-8")
    perceive("filter", config)
    sheet = tmp_path / "sample.csv"
    done = CliRunner().invoke(app, ["review", "export", str(config), "--out", str(sheet), "--per-stratum", "1000"])
    assert done.exit_code == 0, done.output
    assert sheet.with_suffix(".html").read_text("utf-8").count("<article") == len(pl.read_csv(sheet))

    now = open_corpus(load_config(config))
    scored = now.score["text"].rows.select(pl.col("caption_key").bin.encode("hex"), "words")
    judged = pl.read_csv(sheet).drop("verdict").join(scored, on="caption_key", maintain_order="left")
    limit = int(judged.filter(pl.col("words") > 3)["words"].median() or 0)
    bad, hit = judged["words"] > limit, judged["words"] > 3
    assert 0 < bad.sum() < hit.sum() < len(judged)
    judged.with_columns(verdict=pl.when(bad).then(pl.lit("drop")).otherwise(pl.lit("keep"))).write_csv(sheet)

    curves = tmp_path / "curves.csv"
    said = perceive("calibrate", config, sheet, "--precision", 0.99, "--curves", curves)
    (check,) = said["checks"]
    assert (check["reason"], check["labelled"], check["hits"]) == ("long", len(judged), hit.sum())
    assert check["precision"] == pytest.approx(bad.sum() / hit.sum())
    assert check["recall"] == 1.0
    scopes = judged.with_columns(bad=bad).partition_by("task", "language", as_dict=True)
    assert {(better["task"], better["language"]) for better in said["thresholds"]} == set(scopes)
    curve = pl.read_csv(curves)
    for better in said["thresholds"]:
        mine = scopes[better["task"], better["language"]]
        assert (better["bound"], better["now"]) == ("max", 3.0)
        assert better["suggested"] == mine.filter("bad")["words"].min()
        assert better["recall"] == (1.0 if mine["bad"].any() else None)
        steps = curve.filter(task=better["task"], language=better["language"])
        assert steps["threshold"].to_list() == sorted(mine["words"].unique().to_list(), reverse=True)
        assert steps["dropped"].to_list()[-1] == len(mine)
    told = CliRunner().invoke(app, ["calibrate", str(config), str(sheet)]).output
    assert "checks against people" in told
    assert "thresholds for a precision of 0.95" in told
