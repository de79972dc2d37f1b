"""Which view suits a teacher: the same regions through several views, side by side."""

from __future__ import annotations

import html
import re
import statistics
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.arrow import from_table, to_table
from schemas.base import Record
from schemas.caption import Caption, Language, Task
from stages.base import UnitError, checked
from stages.distill.build import build_distill
from stages.distill.config import CaptionsConfig
from stages.distill.units import CaptionUnit
from stages.teachers.config import TeacherConfig

MARK_WORDS: dict[str, tuple[str, ...]] = {
    "en": (
        r"highlight", r"outlin", r"contour", r"\bmask", r"marked", r"bounding box", r"faded", r"\bcrop",
        r"\bline around",
        r"number(?:ed)? (?:1|one)\b", r"\bimage\b", r"\bpicture\b", r"keyframe", r"storyboard", r"\bpanel",
    ),
    "zh": ("标记", "轮廓线", "高亮", "掩码", "编号", "裁剪", "淡化", "图中", "图片", "画面中", "关键帧"),
}  # fmt: skip
"""Words that speak of how the target is shown. The rules of `score` judge captions in full; this is a first look."""


class ViewResult(Record):
    """One view over all regions. Shares are of its answers; `tokens` and `cost_usd` are means a region."""

    view: str
    regions: int
    answered: int
    agreement: float | None
    leakage: float
    mean_length: float
    tokens: float
    cost_usd: float | None


@dataclass(frozen=True)
class Ablation:
    """Results a view, and for every region what each view made of it: pictures (encoded) and the row."""

    task: Task
    language: Language
    results: list[ViewResult]
    samples: list[tuple[CaptionUnit, dict[str, tuple[list[bytes], Caption]]]]


def ablate_views(
    teacher: TeacherConfig,
    captions: CaptionsConfig,
    units: pa.Table,
    views: Sequence[str],
    ledger: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Ablation:
    """Asks about the same units through each view. All units are of one task and language.

    Replies are bought through the ledger like any others. Raises `ValueError` for no units or an unknown view.
    """
    if not len(units):
        raise ValueError("there are no regions to compare views on")
    rows_by_view: dict[str, dict[bytes, Caption]] = {}
    shown: dict[str, list[list[bytes]]] = {}
    asked: list[CaptionUnit] = []
    for view in views:
        task, language = units["task"][0].as_py(), units["language"][0].as_py()
        own = CaptionsConfig.model_validate({**captions.model_dump(), "views": {task: [view]}})
        stage = build_distill(teacher, own, task, language, ledger, storage_options)
        asked = from_table(units.select([n for n in stage.unit.model_fields if n in units.column_names]), stage.unit)
        shown[view] = [
            [] if isinstance(request, UnitError) else [p.data for m in request.messages for p in m.pictures if p.data]
            for request in stage.preview(asked)
        ]
        stage.open()
        try:
            table = pa.concat_tables(checked(stage, to_table(asked, stage.unit)))
        finally:
            stage.close()
        rows_by_view[view] = {row.caption_key: row for row in from_table(table, Caption)}
    samples = [
        (unit, {view: (shown[view][i], rows_by_view[view][unit.caption_key]) for view in views})
        for i, unit in enumerate(asked)
    ]
    results = [_result(view, [(unit, by_view[view][1]) for unit, by_view in samples]) for view in views]
    return Ablation(asked[0].task, asked[0].language, results, samples)


def agrees(label: str, text: str) -> bool:
    """Whether a caption names what its source calls the target: the label's last word, singular or plural."""
    if not label.isascii():
        return label in text
    words = re.findall(r"\w+", label.lower().replace("_", " "))
    if not words:
        return False
    return re.search(rf"\b{re.escape(words[-1])}(?:s|es)?\b", text.lower()) is not None


def leaks(text: str, language: Language) -> bool:
    """Whether a caption speaks of the marks, the crop or the picture itself."""
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in MARK_WORDS[language])


def page(ablation: Ablation) -> str:
    """The comparison as one HTML page without outside files."""
    head = "".join(
        f"<tr><td>{html.escape(r.view)}</td><td>{r.answered}/{r.regions}</td><td>{_percent(r.agreement)}</td>"
        f"<td>{_percent(r.leakage)}</td><td>{r.mean_length:.1f}</td><td>{r.tokens:.0f}</td>"
        f"<td>{'' if r.cost_usd is None else f'${r.cost_usd:.6f}'}</td></tr>"
        for r in ablation.results
    )
    rows = "".join(_sample(unit, by_view) for unit, by_view in ablation.samples)
    titles = "".join(f"<th>{html.escape(r.view)}</th>" for r in ablation.results)
    return (
        "<!doctype html><meta charset=utf-8><title>Views compared</title><style>"
        "body{font:15px/1.4 sans-serif;margin:2em}"
        "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:6px;vertical-align:top;text-align:left}"
        "img{max-width:180px;max-height:180px;margin-right:4px}.bad{color:#a00}</style>"
        f"<h1>Views compared: {ablation.task}, {ablation.language}</h1><table><tr><th>view</th><th>answered</th>"
        "<th>names the source's label</th><th>speaks of the marks</th><th>length</th><th>tokens a region</th>"
        f"<th>cost a region</th></tr>{head}</table><h2>Side by side</h2>"
        f"<table><tr><th>label</th>{titles}</tr>{rows}</table>"
    )


def _sample(unit: CaptionUnit, by_view: dict[str, tuple[list[bytes], Caption]]) -> str:
    cells = []
    for pictures, row in by_view.values():
        images = "".join(f'<img src="data:;base64,{b64encode(data).decode()}">' for data in pictures)
        text = html.escape(row.text or f"{row.reason}: {row.message or ''}")
        cells.append(f"<td>{images}<p{'' if row.text else ' class=bad'}>{text}</p></td>")
    return f"<tr><td>{html.escape(unit.label or '')}</td>{''.join(cells)}</tr>"


def _result(view: str, pairs: Sequence[tuple[CaptionUnit, Caption]]) -> ViewResult:
    told = [(unit, row, row.text) for unit, row in pairs if row.text is not None]
    named = [agrees(unit.label, text) for unit, _, text in told if unit.label]
    costs = [row.usage.cost_usd for _, row in pairs if row.usage.cost_usd is not None]
    return ViewResult(
        view=view,
        regions=len(pairs),
        answered=len(told),
        agreement=statistics.fmean(named) if named else None,
        leakage=statistics.fmean(leaks(text, row.language) for _, row, text in told) if told else 0.0,
        mean_length=statistics.fmean(_length(text, row.language) for _, row, text in told) if told else 0.0,
        tokens=statistics.fmean(row.usage.prompt_tokens + row.usage.completion_tokens for _, row in pairs),
        cost_usd=statistics.fmean(costs) if costs else None,
    )


def _length(text: str, language: Language) -> int:
    return sum(not char.isspace() for char in text) if language == "zh" else len(text.split())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
