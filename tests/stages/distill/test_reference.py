"""The page about answers says what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.distill.reference import answers_page

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "answers.md"


def test_the_page_about_answers_is_made_from_the_models() -> None:
    """To bring it up to date, delete the page and run the test, which fails and writes the new one."""
    if not PAGE.exists():
        PAGE.write_text(answers_page(), encoding="utf-8")
        pytest.fail(f"{PAGE.name} was not there; look at the new one")
    assert PAGE.read_text(encoding="utf-8") == answers_page()
