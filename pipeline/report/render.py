"""From report data to one HTML file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import fsspec
import jinja2

from pipeline.report.data import ReportData

_FOLDER = "pipeline.report"


def render_report(data: ReportData) -> str:
    """The page: one HTML document that loads nothing from anywhere. Texts are escaped, whatever they hold."""
    sources = {
        name: resources.files(_FOLDER).joinpath(name).read_text("utf-8")
        for name in ("report.html", "report.css", "report.js")
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "size": _size, "money": _money}
    return environment.get_template("report.html").render(data=data)


def write_report(data: ReportData, url: str | Path, storage_options: dict[str, Any] | None = None) -> str:
    """Writes the page to a local path or fsspec URL; returns the path."""
    page = render_report(data).encode("utf-8")
    filesystem, path = fsspec.core.url_to_fs(str(url), **(storage_options or {}))
    filesystem.makedirs(filesystem._parent(path), exist_ok=True)
    filesystem.pipe_file(path, page)
    return str(url)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _money(amount: float | None) -> str:
    return "–" if amount is None else f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.5f}"
