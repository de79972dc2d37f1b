"""Validation reports as a terminal table, Markdown and HTML; several reports stand side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.evaluate import Answer, Report

_ORDER = (
    "label_accuracy", "colour_words", "position_words", "motion_words", "semantic_similarity", "semantic_iou", "cider",
    "meteor", "rouge_l", "bleu4", "mask_iou",
)  # fmt: skip
Table = tuple[list[str], list[list[str]]]


def table(reports: Sequence[Report]) -> Table:
    """Head and rows: the overall scores of each report, then each task and language."""
    names = [s for s in _ORDER if any(s in t.scores for r in reports for t in r.tasks)]
    rows = []
    for report in reports:
        count = sum(t.count for t in report.tasks)
        rows.append([report.name, "all", str(count), *(_cell(report.overall.get(s)) for s in names)])
        for task in report.tasks:
            what = f"{task.task} {task.language}"
            rows.append([report.name, what, str(task.count), *(_cell(task.scores.get(s)) for s in names)])
    return ["model", "task", "captions", *(s.replace("_", " ") for s in names)], rows


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def as_terminal(reports: Sequence[Report]) -> Any:
    """A rich table."""
    from rich.table import Table as RichTable

    head, rows = table(reports)
    shown = RichTable(*head)
    for row in rows:
        shown.add_row(*row, style="bold" if row[1] == "all" else None)
    return shown


def as_markdown(reports: Sequence[Report]) -> str:
    """Table, notices, and the best and worst answers."""
    head, rows = table(reports)
    lines = ["# Validation", "", _line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    lines += [f"> {notice}" for notice in _notices(reports)]
    for report in reports:
        for title, answers in (("Best", report.best), ("Worst", report.worst)):
            lines += ["", f"## {title} of {report.name}", "", _line(["task", "wanted", "answered"]), _line(["---"] * 3)]
            lines += [_line([f"{a.task} {a.language}", a.wanted, a.predicted]) for a in answers]
    return "\n".join(lines) + "\n"


def as_html(reports: Sequence[Report]) -> str:
    """One self-contained page."""
    head, rows = table(reports)
    body = ["<h1>Validation</h1>", _html_table(head, rows)]
    body += [f"<p class=note>{html.escape(notice)}</p>" for notice in _notices(reports)]
    for report in reports:
        for title, answers in (("Best", report.best), ("Worst", report.worst)):
            body.append(f"<h2>{title} of {html.escape(report.name)}</h2>")
            body.append(_html_table(["task", "wanted", "answered"], [_shown(a) for a in answers]))
    style = (
        "body{font:15px system-ui;margin:2rem;max-width:80rem}table{border-collapse:collapse}"
        "td,th{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left}.note{color:#666}"
    )
    head_tag = f"<meta charset=utf-8><title>Validation</title><style>{style}</style>"
    return f"<!doctype html><html lang=en>{head_tag}{''.join(body)}</html>\n"


def _shown(answer: Answer) -> list[str]:
    return [f"{answer.task} {answer.language}", answer.wanted, answer.predicted]


def _notices(reports: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(notice for report in reports for notice in report.notices))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"
