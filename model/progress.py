"""What a run leaves behind: metrics, samples, and checkpoints from which it goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

log = logging.getLogger("perceive.train")

STATE = "state.pt"
_SCALARS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps taken, seconds of stepping, tokens seen, steps not taken."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    skipped: int = 0


class Journal:
    """`metrics.jsonl` and `samples.jsonl` in the output folder, the console, and TensorBoard."""

    def __init__(self, folder: Path, resumed_at: int, tensorboard: bool | Literal["auto"] = "auto") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "samples.jsonl"):
            _cut(folder / name, resumed_at)
        self._board = _board(folder / "tensorboard", tensorboard)

    def metrics(self, row: dict[str, Any]) -> None:
        """One row a logged step."""
        _append(self.folder / "metrics.jsonl", row)
        shown = "  ".join(f"{k} {row[k]:.4g}" for k in _SCALARS if row.get(k) is not None)
        log.info("step %d  %s", row["step"], shown)
        for name in _SCALARS:
            if self._board is not None and row.get(name) is not None:
                self._board.add_scalar(name, row[name], row["step"])

    def samples(self, rows: Sequence[dict[str, Any]]) -> None:
        """Captions generated in the middle of training beside the wanted ones."""
        for row in rows:
            _append(self.folder / "samples.jsonl", row)
            log.info("step %d  %s: %s | wanted: %s", row["step"], row["task"], row["text"], row["wanted"])


class Checkpoints:
    """`checkpoints/step-N` folders, each complete or absent; the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = [path for path in self.folder.glob("step-*") if (path / STATE).is_file()]
        return max(found, key=_step, default=None)

    def drop(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a folder beside, then renames it; drops the oldest."""
        target = self.folder / f"step-{step}"
        partial = self.folder / f".step-{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.save(state, partial / STATE)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        done = sorted((p for p in self.folder.glob("step-*")), key=_step)
        for old in done[: -self.keep]:
            shutil.rmtree(old)
        return target

    @staticmethod
    def load(path: Path) -> dict[str, Any]:
        """What `save` was given. Tensors and plain values only: nothing in the file is executed."""
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
        return state


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _append(file: Path, row: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _cut(file: Path, step: int) -> None:
    """Drops rows of steps that a killed run took after its last checkpoint, and a torn last line."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue
    file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _board(folder: Path, wanted: bool | Literal["auto"]) -> Any:
    if not wanted:
        return None
    if find_spec("tensorboard") is None:
        if wanted != "auto":
            log.warning("tensorboard is not installed; metrics go to metrics.jsonl only")
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
