"""A model's weights on a node: fetched once and read from disk once, however many engines start there."""

from __future__ import annotations

import fcntl
import importlib
import tempfile
from pathlib import Path

from schemas.keys import digest_value

_BLOCK = 1 << 24
_UNUSED = ["original/*", "*.pth", "*.msgpack", "*.h5", "*.gguf"]


def warm(model: str, revision: str | None) -> int:
    """Fetches a Hugging Face model that is not here yet, and reads its weights into the page cache; returns the bytes.

    `model` is a folder or a model id. Processes of one node take turns: the first pays for network and disk, the others
    read from memory. Raises `OSError` or `ValueError` for a model that cannot be had.
    """
    lock = Path(tempfile.gettempdir()) / f"perceive-weights-{digest_value([model, revision]).hex()}.lock"
    with lock.open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        folder = Path(model) if Path(model).is_dir() else _fetched(model, revision)
        return sum(_read(file) for file in sorted(folder.glob("*.safetensors")))


def _fetched(model: str, revision: str | None) -> Path:
    hub = importlib.import_module("huggingface_hub")
    return Path(hub.snapshot_download(model, revision=revision, ignore_patterns=_UNUSED))


def _read(file: Path) -> int:
    total = 0
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            total += len(block)
    return total
