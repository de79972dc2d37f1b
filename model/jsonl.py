"""PAM-native annotation files (the format of PAM's public training code) as a corpus."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from model.corpus import CorpusError, Example
from prompts.pam import IMAGE_MARK, PROMPTS
from schemas.base import Box
from schemas.caption import Language, Task
from schemas.geometry import Point
from schemas.keys import digest_value
from stages.base import UnitError
from stages.export.pam_validate import record_errors
from stages.media.images import load_image


class JsonlCorpus:
    """One or more `.jsonl` (a record a line) or `.json` (a list) files; images and frames are read when needed.

    Paths in the records are taken relative to `root` where they are not absolute. Every record is checked when the
    file is opened, by the rules of PAM's loader and for one question and one answer; whether its pictures are there is
    seen when they are read. Raises CorpusError naming file and line.
    """

    def __init__(self, files: Sequence[str | Path], root: str | Path = ".") -> None:
        self._root = Path(root)
        self._records: list[dict[str, Any]] = []
        rows = []
        for file in map(Path, files):
            for line, record in _records(file):
                where = f"{file}, record {line}"
                question, answer = _turns(record, where)
                task, language = _asked(question, record["type"])
                self._records.append(record | {"question": question, "answer": answer, "where": where})
                name = f"{file}:{line}"
                rows.append((name, record["type"] == "video", task, language, file.stem, len(answer), name, ""))
        names = ["media", "video", "task", "language", "source", "length", "region", "label"]
        self.index = pl.DataFrame(rows, schema=names, orient="row")

    def load(self, number: int) -> Example:
        """The record of row `number`. Raises CorpusError when its first picture cannot be read."""
        record, row = self._records[number], self.index.row(number, named=True)
        paths = _paths(record, self._root)
        box, points = _prompts(record)
        return Example(
            key=row["region"],
            video=row["video"],
            count=len(paths),
            size=_size(str(paths[0]), record["where"]),
            read=lambda indices: [_picture(str(paths[at]), record["where"]) for at in indices],
            box=box,
            points=points,
            mask=None,
            task=row["task"],
            language=row["language"],
            text=record["answer"],
            question=record["question"],
            origin=digest_value([str(path.absolute()) for path in paths]).hex(),
        )


def _records(file: Path) -> list[tuple[int, dict[str, Any]]]:
    if not file.is_file():
        raise CorpusError(f"{file}: no such file")
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix == ".json":
            return list(enumerate(json.loads(text), 1))
        return [(at, json.loads(line)) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    except json.JSONDecodeError as error:
        raise CorpusError(f"{file}: not JSON lines: {error}") from error


def _turns(record: Any, where: str) -> tuple[str, str]:
    """The question without its `<image>` mark, and the answer, of a record that breaks no rule of PAM's loader."""
    turns = (record.get("conversations") or []) if isinstance(record, dict) else []
    roles = [turn.get("from") if isinstance(turn, dict) else None for turn in turns]
    if isinstance(record, dict) and roles != ["human", "gpt"]:
        raise CorpusError(f"{where}: conversations must be one human and one gpt turn")
    for rule, message in record_errors(record):
        raise CorpusError(f"{where}: {rule}: {message}")
    return turns[0]["value"].replace(IMAGE_MARK, "").strip(), turns[1]["value"]


def _asked(question: str, kind: str) -> tuple[Task, Language]:
    """Task and language of a prompt, by the published wording; other wordings count as brief or video."""
    for language, tasks in PROMPTS.items():
        for task, text in tasks.items():
            if question.startswith(text.split("{history}")[0]):
                return task, language
    return ("video" if kind == "video" else "brief"), "en"


def _paths(record: dict[str, Any], root: Path) -> list[Path]:
    if record["type"] == "image":
        return [root / record["image"]]
    return [root / record["image_root"] / frame for frame in record["frames"]]


def _prompts(record: dict[str, Any]) -> tuple[Box | None, list[Point]]:
    """xyxy box and points of the first frame, from xywh boxes and nested lists."""
    box, points, labels = record["bbox"], record["points"], record["labels"]
    if record["type"] == "video":
        box, points, labels = (value[0] if value else None for value in (box, points, labels))
    xyxy = None
    if box:
        x, y, width, height = map(float, box)
        xyxy = (x, y, x + width, y + height)
    marks = zip(points or [], labels or [], strict=True)
    return xyxy, [Point(x=x, y=y, label=label) for (x, y), label in marks]


@functools.lru_cache(maxsize=4096)
def _size(path: str, where: str) -> tuple[int, int]:
    height, width, _ = _picture(path, where).shape
    return height, width


def _picture(path: str, where: str) -> np.ndarray:
    try:
        return load_image(path)
    except UnitError as error:
        raise CorpusError(f"{where}: {error.message}") from error
