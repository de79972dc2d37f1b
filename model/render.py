"""Validation reports as a terminal table, Markdown and HTML; several reports stand side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from model.answers import Answer
from model.corpus import Corpus
from model.overlay import overlay
from stages import masks

if TYPE_CHECKING:
    from model.evaluate import Report

_ORDER = (
    "label_accuracy", "colour_words", "position_words", "motion_words", "semantic_similarity", "semantic_iou", "cider",
    "meteor", "rouge_l", "bleu4", "mask_iou", "mask_j", "mask_f", "j_and_f", "g_stdc", "dlc_positive", "dlc_negative",
    "dlc", "videorefer_subject_correspondence", "videorefer_appearance_description",
    "videorefer_temporal_description", "videorefer_hallucination_detection", "videorefer_d",
)  # fmt: skip
_NAMES = {
    "j_and_f": "J&F", "mask_j": "J", "mask_f": "F", "g_stdc": "G-STDC", "bleu4": "BLEU@4", "cider": "CIDEr",
    "meteor": "METEOR", "rouge_l": "ROUGE-L", "mask_iou": "mask IoU", "dlc": "DLC", "dlc_positive": "DLC positive",
    "dlc_negative": "DLC negative", "videorefer_subject_correspondence": "SC",
    "videorefer_appearance_description": "AD", "videorefer_temporal_description": "TD",
    "videorefer_hallucination_detection": "HD", "videorefer_d": "VideoRefer-D",
}  # fmt: skip
_PICTURE_SIDE = 320
Table = tuple[list[str], list[list[str]]]


def table(reports: Sequence[Report]) -> Table:
    """Head and rows: the overall scores of each report, then each task and language."""
    tables = [scores for report in reports for scores in (report.overall, *(task.scores for task in report.tasks))]
    names = [name for name in _ORDER if any(name in scores for scores in tables)]
    rows = []
    for report in reports:
        count = sum(task.count for task in report.tasks)
        rows.append([report.name, "all", str(count), *(_cell(report.overall.get(s)) for s in names)])
        for task in report.tasks:
            what = f"{task.task} {task.language}"
            rows.append([report.name, what, str(task.count), *(_cell(task.scores.get(s)) for s in names)])
    return ["model", "task", "captions", *(_NAMES.get(s, s.replace("_", " ")) for s in names)], rows


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def as_terminal(reports: Sequence[Report]) -> Any:
    """Tables for a terminal: one a report, a row a score, a column a task, so that it fits."""
    from rich.console import Group
    from rich.table import Table as RichTable

    head, rows = table(reports)
    shown: list[Any] = []
    for report in reports:
        own = [row for row in rows if row[0] == report.name]
        made = RichTable("", *(row[1] for row in own), title=report.name, title_justify="left")
        for at, name in enumerate(head[2:], 2):
            made.add_row(name, *(row[at] for row in own))
        shown += [made, *report.notices]
        for title, answers in (("best", report.best), ("worst", report.worst)):
            examples = RichTable("task", "wanted", "answered", title=title, title_justify="left")
            for answer in answers:
                examples.add_row(*map(_plain, _shown(answer)))
            shown.append(examples)
    return Group(*shown)


def _plain(text: str) -> Any:
    """A cell without markup: captions may hold square brackets."""
    from rich.text import Text

    return Text(text)


def as_markdown(reports: Sequence[Report]) -> str:
    """Table, notices, and the best and worst answers."""
    head, rows = table(reports)
    lines = ["# Validation", "", _line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    lines += [f"> {notice}" for notice in _notices(reports)]
    for report in reports:
        for title, answers in (("Best", report.best), ("Worst", report.worst)):
            lines += ["", f"## {title} of {report.name}", "", _line(["task", "wanted", "answered"]), _line(["---"] * 3)]
            lines += [_line(_shown(a)) for a in answers]
    return "\n".join(lines) + "\n"


def as_html(reports: Sequence[Report], pictures: Mapping[int, str] | None = None) -> str:
    """One self-contained page; `pictures` are data URLs by the answers' rows (see `pictures_of`)."""
    head, rows = table(reports)
    body = ["<h1>Validation</h1>", _html_table(head, rows)]
    body += [f"<p class=note>{html.escape(notice)}</p>" for notice in _notices(reports)]
    for report in reports:
        for title, answers in (("Best", report.best), ("Worst", report.worst)):
            body.append(f"<h2>{title} of {html.escape(report.name)}</h2>")
            images = [(pictures or {}).get(a.row) for a in answers]
            body.append(_html_table(["task", "wanted", "answered"], [_shown(a) for a in answers], images))
    style = (
        "body{font:15px system-ui;margin:2rem;max-width:80rem}table{border-collapse:collapse}"
        "td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left}.note{color:#666}"
    )
    head_tag = f"<meta charset=utf-8><title>Validation</title><style>{style}</style>"
    return f"<!doctype html><html lang=en>{head_tag}{''.join(body)}</html>\n"


def pictures_of(corpus: Corpus, answers: Sequence[Answer]) -> dict[int, str]:
    """Small pictures of the answers' targets (a clip's first frame) as data URLs, the reference's mask or box drawn."""
    return {answer.row: _picture(corpus, answer.row) for answer in answers}


def _picture(corpus: Corpus, row: int) -> str:
    example = corpus.load(row)
    image = np.asarray(example.read([0])[0])
    mask = masks.decode(example.mask) if example.mask is not None else None
    drawn = Image.fromarray(overlay(image, mask if mask is not None and mask.shape == image.shape[:2] else None))
    if mask is None and example.box is not None:
        ImageDraw.Draw(drawn).rectangle(example.box, outline=(0, 190, 255), width=max(2, max(drawn.size) // 200))
    drawn.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    data = io.BytesIO()
    drawn.save(data, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _shown(answer: Answer) -> list[str]:
    return [f"{answer.task} {answer.language}", " / ".join(answer.references), answer.predicted]


def _notices(reports: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(notice for report in reports for notice in report.notices))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], pictures: Sequence[str | None] | None = None
) -> str:
    """A table; with `pictures` its first column shows them."""
    shown = pictures is not None and any(pictures)
    top = ("<th></th>" if shown else "") + "".join(f"<th>{html.escape(c)}</th>" for c in head)
    lines = []
    for row, picture in zip(rows, pictures if pictures is not None else [None] * len(rows), strict=True):
        image = (f'<td><img src="{picture}" alt=""></td>' if picture else "<td></td>") if shown else ""
        lines.append(f"<tr>{image}" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>")
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"
