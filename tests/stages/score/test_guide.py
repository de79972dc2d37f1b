"""The guide's rule is code that runs."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import polars as pl

GUIDES = Path(__file__).resolve().parents[3] / "docs/guides"


def test_the_rule_of_the_guide_passes_the_test_of_the_guide(score: Callable[..., pl.DataFrame]) -> None:
    rule, test = re.findall(r"```python\n(.*?)```", (GUIDES / "add-a-rule.md").read_text("utf-8"), re.DOTALL)
    module = types.ModuleType("guide_shouting")
    sys.modules[module.__name__] = module
    try:
        exec(compile(rule, "add-a-rule.md", "exec"), module.__dict__)
        exec(compile(test, "add-a-rule.md", "exec"), module.__dict__)
        module.test_shouting(score)
    finally:
        del sys.modules[module.__name__]


def test_the_policy_of_the_guide_is_valid(tmp_path: Path) -> None:
    from stages.policy import load_policy

    (policy,) = re.findall(r"```yaml\n(name: mine.*?)```", (GUIDES / "filters.md").read_text("utf-8"), re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(policy)
    assert load_policy(file).name == "mine"


def test_the_guide_names_every_column() -> None:
    from stages.score.groups import all_columns

    guide = (GUIDES / "filters.md").read_text("utf-8")
    left = {"exact_copies", "near_copies", "near_similarity"}
    groups = {name: column.group for name, column in all_columns().items()}
    assert [name for name, group in groups.items() if f"`{name}`" not in guide and name not in left] == []
