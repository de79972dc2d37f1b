"""Formats of other projects: PAM's own annotation files, out and in."""

from __future__ import annotations

from stages.export.pam_export import PamExport, PamExportConfig, export_pam
from stages.export.pam_import import PamImport, import_config, import_pam
from stages.export.pam_validate import Problem, validate_pam

__all__ = [
    "PamExport",
    "PamExportConfig",
    "PamImport",
    "Problem",
    "export_pam",
    "import_config",
    "import_pam",
    "validate_pam",
]
