"""What this machine has, and whether a configuration can run on it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from typing import Literal

from pipeline.config import EngineConfig
from schemas.base import Record


class Finding(Record):
    """One thing looked for; `missing` means that the configuration cannot run."""

    state: Literal["ok", "note", "missing"]
    what: str
    found: str


def examine(config: EngineConfig | None) -> list[Finding]:
    """Findings on Python, packages, CPUs, GPUs, memory; and on the parts of a configuration."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        Finding(state="ok", what="python", found=platform.python_version()),
        Finding(state="ok", what="cpus", found=str(cpus)),
        *(_package(name) for name in ("ray", "torch", "torchvision", "pyarrow", "polars", "webdataset", "openai")),
        *(_optional(name, why) for name, why in _OPTIONAL.items()),
        _java(),
    ]
    return found + (_of_config(config) if config else [])


_OPTIONAL = {
    "sam2": "refine with SAM 2: pip install 'perceive-engine[sam2]'",
    "transformers": "train and validate PAM: pip install 'perceive-engine[train]'",
    "s3fs": "runs on object stores: pip install 'perceive-engine[s3]'",
    "vllm": "teachers inside Ray: pip install 'perceive-engine[vllm]'",
    "decord": "the fast video reader; PyAV is used where it is absent",
}


def _package(name: str) -> Finding:
    try:
        return Finding(state="ok", what=name, found=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(state="missing", what=name, found="not installed: pip install perceive-engine")


def _optional(name: str, why: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(state="note", what=name, found=f"not installed ({why})")
    return Finding(state="ok", what=name, found=metadata.version(name))


def _java() -> Finding:
    path = shutil.which("java")
    return Finding(
        state="ok" if path else "note", what="java", found=path or "absent: METEOR is left out of validation"
    )


def _of_config(config: EngineConfig) -> list[Finding]:
    from pipeline.settings import ConfigError, expanded
    from stages.ingest.sources import annotation_paths
    from stages.policy import load_policy

    found = []
    for source in config.sources:
        for path in annotation_paths(source):
            found.append(_path(f"source {source.name}", path))
    found.append(Finding(state="ok", what="policy", found=f"{load_policy(config.policy).name} ({config.policy})"))
    found += _refiner(config)
    variable = config.teacher.api_key_env
    if variable:
        state: Literal["ok", "missing"] = "ok" if os.environ.get(variable) else "missing"
        found.append(
            Finding(state=state, what="teacher key", found=f"{variable} is {'' if state == 'ok' else 'not '}set")
        )
    try:
        expanded(config.storage_options)
    except ConfigError as error:
        found.append(Finding(state="missing", what="storage_options", found=str(error)))
    return found


def _refiner(config: EngineConfig) -> list[Finding]:
    if config.refine.backend == "grabcut":
        return [Finding(state="ok", what="refine", found="grabcut (OpenCV, no weights)")]
    from stages.sam2.device import describe_device

    described = describe_device(config.refine)
    return [Finding(state="ok", what="refine", found=", ".join(f"{k} {v}" for k, v in described.items()))]


def _path(what: str, path: str) -> Finding:
    import fsspec

    fs, bare = fsspec.core.url_to_fs(path)
    there = bool(fs.exists(bare))
    return Finding(state="ok" if there else "missing", what=what, found=path if there else f"{path} does not exist")
