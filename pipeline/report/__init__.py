"""The report: one HTML file that shows where rows went and what the kept ones look like.

data = report_data(tables, title="...", funnel=status_counts)   # pure, reads pixels of the shown samples only
write_report(data, "runs/coco/report/index.html")
"""

from __future__ import annotations

from pipeline.report.build import report_data
from pipeline.report.data import ReportData
from pipeline.report.render import render_report, write_report

__all__ = ["ReportData", "render_report", "report_data", "write_report"]
