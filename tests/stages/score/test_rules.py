"""All twenty rules are there, say what they are, and the policies that come with the engine know their columns."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from stages.policy import load_policy
from stages.score.base import LANGUAGES, Need, Rule, ScoreStage
from stages.score.duplicates import CorpusScores
from stages.score.embeddings import EmbeddingStage
from stages.score.encoder import EmbeddingsConfig, ModelConfig
from stages.score.groups import GROUPS, PLAIN, all_columns
from stages.score.judge import JudgeScores
from stages.score.pixels import PixelStage
from stages.score.similarity import CropStage, GroundingStage

ROOT = Path(__file__).resolve().parents[3]
MODEL = ModelConfig(model="any")
STAGES: tuple[ScoreStage, ...] = (
    *(stage() for stage in PLAIN),
    PixelStage(),
    EmbeddingStage(EmbeddingsConfig()),
    CropStage(MODEL),
    GroundingStage(MODEL),
)
RULES = [rule for stage in STAGES for rule in stage.rules]
BY_TEACHER = {10, 11, 12}
OF_THE_CORPUS = {20}


def test_no_group_is_left_out_here() -> None:
    assert {stage.group for stage in STAGES} | {"judge"} == {stage.group for stage in GROUPS}


def test_there_are_twenty() -> None:
    assert {rule.number for rule in RULES} | BY_TEACHER | OF_THE_CORPUS == set(range(1, 21))
    for said, numbers in ((inspect.getdoc(JudgeScores), BY_TEACHER), (inspect.getdoc(CorpusScores), OF_THE_CORPUS)):
        assert all(re.search(rf"rules? {number}|\(rule {number}", said or "", re.IGNORECASE) for number in numbers)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_says_what_it_is(rule: Rule) -> None:
    said = inspect.getdoc(rule) or ""
    assert said.startswith(f"Rule {rule.number}")
    assert "Source: " in said
    assert rule.version >= 1
    assert rule.needs
    assert set(rule.needs) <= set(Need.__args__)  # type: ignore[attr-defined]
    assert set(rule.languages) <= set(LANGUAGES)
    assert rule.columns
    assert isinstance(rule.settings(), dict)


def test_names_and_columns_are_of_one_rule_each() -> None:
    names = [rule.name for rule in RULES]
    columns = [column for rule in RULES for column in rule.columns]
    assert len(set(names)) == len(names)
    assert len(set(columns)) == len(columns)
    own = {name for name, column in all_columns().items() if column.group not in ("judge", "corpus")}
    assert set(columns) == own, "a column that no rule fills"


def test_the_guide_has_a_line_a_rule_with_its_columns() -> None:
    guide = (ROOT / "docs/guides/filters.md").read_text("utf-8")
    lines = {int(number): line for number, line in re.findall(r"^\| (\d+) \| (.*)$", guide, re.MULTILINE)}
    assert set(lines) == set(range(1, 21))
    for rule in RULES:
        for column in rule.columns:
            assert f"`{column}`" in lines[rule.number]


def test_every_rule_is_asked_by_some_policy() -> None:
    """Each rule's columns occur in a policy that comes with the engine, so that switching it on has an effect."""
    asked = {
        check.column for path in (ROOT / "configs" / "policy").glob("*.yaml") for check in load_policy(path).checks
    }
    silent = [rule.name for rule in RULES if not asked & set(rule.columns)]
    assert silent == []
