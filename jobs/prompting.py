"""Prompts as they are written, and requests as a teacher of a run gets them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.config import EngineConfig
from pipeline.engine import Corpus, Step
from pipeline.looking import open_corpus
from pipeline.settings import ConfigError
from prompts.loader import load
from schemas.arrow import from_table
from stages.base import UnitError
from stages.distill.show import save_request, show_request
from stages.distill.stage import DistillStage
from stages.teachers.pricing import price_of
from stages.teachers.protocol import TeacherRequest

_TRIED = 64
"""How many captions are tried until one can be rendered."""


def template_text(prompt_id: str, folder: Path | None = None) -> str:
    """A prompt's sections as they are written, with its hash; from a folder of one's own where that has it.

    Raises `PromptError`.
    """
    prompt = load(prompt_id, [folder] if folder else [])
    sections = "\n\n".join(f"## {name}\n{text}" for name, text in prompt.sections.items())
    return f"# {prompt.id}, version {prompt.version}, {prompt.hash.hex()}\n\n{sections}"


def rendered_prompt(prompt_id: str, config: EngineConfig, key: str | None, to: Path | None = None) -> str:
    """The first request of a caption of the run, as the teacher would get it, with its pictures in the folder `to`.

    `prompt_id` is a prompt that the run uses (`combined.en`, `translate.zh`), or a task and language that it asks;
    `key` the first digits of a caption's key or a region's. Raises `ConfigError` if there is no such request.
    """
    steps = _steps(prompt_id, open_corpus(config))
    said = f"the run has no caption {key or ''} of {prompt_id} with a mask yet"
    for step in steps:
        assert isinstance(step.stage, DistillStage)
        for request in _previews(step.stage, step.units, key):
            if isinstance(request, TeacherRequest):
                return _shown(request, config, prompt_id, to)
            said = f"the request cannot be rendered: {request}"
    raise ConfigError(said)


def _steps(prompt_id: str, now: Corpus) -> list[Step]:
    """The steps that ask by a prompt; else the step of the task and language that the name stands for."""
    stages = {pair: step for pair, step in now.distill.items() if isinstance(step.stage, DistillStage)}
    used = {pair: step.stage.recipe.prompt.id for pair, step in stages.items() if isinstance(step.stage, DistillStage)}
    found = [stages[pair] for pair, prompt in used.items() if prompt == prompt_id]
    found = found or [step for (task, language), step in stages.items() if f"{task}.{language}" == prompt_id]
    if not found:
        asked = dict.fromkeys([*used.values(), *(f"{task}.{language}" for task, language in stages)])
        raise ConfigError(f"the run asks nothing by {prompt_id}; it asks {', '.join(asked)}")
    return found


def _previews(stage: DistillStage, units: pa.Table, key: str | None) -> list[TeacherRequest | UnitError]:
    """Requests of the captions that a key names, up to the first that can be rendered."""
    frame = pl.DataFrame(pl.from_arrow(units)).select("caption_key", "region_key").with_row_index("row")
    rows = [
        row
        for row, *keys in frame.select("row", "caption_key", "region_key").iter_rows()
        if not key or any(one.hex().startswith(key) for one in keys)
    ]
    made: list[TeacherRequest | UnitError] = []
    for row in rows[:_TRIED]:
        made += stage.preview(from_table(units.take(pa.array([row])), stage.unit))
        if isinstance(made[-1], TeacherRequest):
            break
    return made


def _shown(request: TeacherRequest, config: EngineConfig, prompt_id: str, to: Path | None) -> str:
    price = price_of(config.teacher.identity, config.teacher.prices)
    text = f"# {prompt_id}\n\n{show_request(request, price)}"
    if to is not None:
        text += "\n\n" + "\n".join(f"written: {path}" for path in save_request(request, price, to))
    return text
