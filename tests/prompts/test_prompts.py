"""Prompts: every file loads, renders in both languages, and its hash stands for what can change an answer."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts import Prompt, PromptError, for_task, load, prompt_ids
from prompts.loader import TEMPLATES
from stages.distill.answers import answer_model

CONTEXT: dict[str, Any] = {
    "label": "dog", "definitions": ["a domestic animal"], "phrases": ["the dog on the left"], "views": ["crop_mask"],
    "mark": 1, "duration_s": 4.0, "times": "0.1, 1.0", "events": [], "event_index": 1, "num_events": 3, "start_s": 1.0,
    "end_s": 2.0, "absent": False, "motion": "moving right", "history": ["A dog runs."],
    "parts": {"label": "dog", "definition": "A domestic animal.", "function": "It guards the yard."},
}  # fmt: skip


def copy_of(prompt_id: str, folder: Path, old: str, new: str) -> Path:
    text = (TEMPLATES / f"{prompt_id}.md").read_text(encoding="utf-8")
    assert old in text
    path = folder / f"{prompt_id}.md"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize("prompt_id", prompt_ids())
def test_every_prompt_renders_and_names_an_answer(prompt_id: str) -> None:
    prompt = load(prompt_id)
    turns = prompt.render(CONTEXT)
    assert turns.system
    assert "{{" not in turns.user
    assert "{%" not in turns.user
    assert "not a JSON object" in prompt.repair("not a JSON object")
    schema = "ExplainAnswer" if prompt.schema_name == "OfTask" else prompt.schema_name
    fields = answer_model(schema).model_fields
    assert all(f'"{field}"' in turns.user for field in fields), "the prompt states the shape of the answer"


@pytest.mark.parametrize("task", ["label", "explain", "brief", "detailed", "video", "stream", "combined"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompts_carry_the_lessons_of_the_filters(task: str, language: str) -> None:
    system = for_task(task, language).render(CONTEXT).system
    lessons = {
        "en": ["target alone", "guess", "that we added", "This image shows", "appears to be", "single quotes", "who a"],
        "zh": ["目标本身", "猜测", "我们加上", "图中", "似乎", "单引号", "身份"],
    }
    assert all(lesson in system for lesson in lessons[language])


def test_the_streaming_prompt_carries_the_history_and_nothing_where_there_is_none() -> None:
    prompt = for_task("stream", "en")
    assert "A dog runs." in prompt.render(CONTEXT).user
    assert "Do not repeat" in prompt.render(CONTEXT).user
    first = prompt.render(CONTEXT | {"history": [], "event_index": 0}).user
    assert "Nothing has been written yet" in first
    assert "event 1 of 3" in first


def test_the_hash_covers_text_passages_and_front_matter_but_not_the_changelog(tmp_path: Path) -> None:
    original = load("brief.en")
    copy_of("brief.en", tmp_path, "note: First version.", "note: Other words.")
    assert load("brief.en", [tmp_path]).hash == original.hash
    copy_of("brief.en", tmp_path, "views: [crop_mask]", "views: [contour]")
    assert load("brief.en", [tmp_path]).hash != original.hash
    copy_of("brief.en", tmp_path, "5 to 25 words", "5 to 20 words")
    assert load("brief.en", [tmp_path]).hash != original.hash
    shutil.copy(TEMPLATES / "brief.en.md", tmp_path / "brief.en.md")
    (tmp_path / "_rules.en.md").write_text("Be brief.")
    assert load("brief.en", [tmp_path]).hash != original.hash
    assert load("brief.zh", [tmp_path]).hash == load("brief.zh").hash


def test_bad_prompts_are_refused_with_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"no prompt 'nothing.en'.*brief.en"):
        load("nothing.en")
    for old, new, message in (
        ("---\nid: brief.en", "id: brief.en", "front matter"),
        ("# Repair", "## Repair", "section # Repair"),
        ("id: brief.en", "id: other.en", "name the file other.en.md"),
        ('"_rules.en.md"', '"_lost.en.md"', "_lost.en.md"),
        ("version: 1\ntask", "version: none\ntask", "version"),
        ("{% include", "{% unclude", "unclude"),
    ):
        path = copy_of("brief.en", tmp_path, old, new)
        with pytest.raises(PromptError, match=re.escape(message)) as raised:
            load("brief.en", [tmp_path])
        assert str(path) in str(raised.value)


def test_a_name_that_the_context_lacks_is_an_error_not_a_gap() -> None:
    with pytest.raises(PromptError, match=r"brief.en.*label"):
        for_task("brief", "en").render({"views": []})


BRIEF: Prompt = for_task("brief", "en")


@given(st.text(min_size=1, max_size=60))
def test_what_a_source_says_is_never_run_as_a_template(text: str) -> None:
    hostile = "{{ 7 * 7 }} {% include 'x' %}"
    user = BRIEF.render(CONTEXT | {"label": hostile, "phrases": [text]}).user
    assert hostile in user
