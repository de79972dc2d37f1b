"""YAML read safely, by the C parser where PyYAML has it: ten times faster, which every command line feels."""

from __future__ import annotations

from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str | bytes) -> Any:
    """The value of a YAML document of plain types. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_LOADER)
