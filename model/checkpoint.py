"""Weights on disk: safetensors under the names of the released PAM state dict, ours and theirs alike.

A folder holds `pam.json` (the configuration), `model.safetensors` and the tokenizer. Released checkpoints come as a
Hugging Face repository with `config.json` and sharded safetensors, and read through the same mapping.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import PAM_SIZES, PamConfig
from model.pam import Pam, build_llm, cast
from model.tokenizer import load_tokenizer

_PREFIXES = (
    ("perceiver.", "model.vision_resampler."),
    ("projector.", "model."),
    ("llm.", ""),
)
_TOWER = "model.vision_tower."
_TIED = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
CONFIG, WEIGHTS = "pam.json", "model.safetensors"

log = logging.getLogger("perceive.checkpoint")


class CheckpointError(Exception):
    """A checkpoint cannot be read as a PAM; the message names the folder and what is wrong with it."""


@dataclass(frozen=True)
class LoadReport:
    """What a load found: every key of the model and of the checkpoint is in exactly one list (or loaded)."""

    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mis_shaped: list[str] = field(default_factory=list)
    tolerated: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every weight of the model came from the checkpoint."""
        return not (self.missing or self.mis_shaped)

    @property
    def clean(self) -> bool:
        """Whether it is complete and the checkpoint holds nothing else."""
        return self.complete and not self.unexpected

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded"]
        for name in ("missing", "unexpected", "mis_shaped", "tolerated"):
            keys: list[str] = getattr(self, name)
            lines += [f"{len(keys)} {name.replace('_', '-')}: {', '.join(keys)}"] if keys else []
        return "\n".join(lines)


def released_name(name: str) -> str:
    """Our parameter name -> the released one."""
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def released_state(pam: Pam) -> dict[str, Tensor]:
    """The state dict under the released names; a tied output head is left out, as there."""
    state = {released_name(name): value for name, value in pam.state_dict().items()}
    if pam.llm.config.tie_word_embeddings:
        state.pop(_TIED, None)
    return state


def save(pam: Pam, folder: Path, tokenizer: Any) -> Path:
    """Writes `pam.json`, the weights and the tokenizer; the weights appear last, by a rename. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(pam.config.model_dump_json(indent=2) + "\n")
    tokenizer.save_pretrained(str(folder))
    state = {name: value.detach().cpu().clone() for name, value in released_state(pam).items()}
    partial = folder / (WEIGHTS + ".partial")
    save_file(state, str(partial), metadata={"format": "pt"})
    partial.replace(folder / WEIGHTS)
    return folder


def load(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> tuple[Pam, Any]:
    """The model and tokenizer of a folder written by `save`. Raises CheckpointError unless every weight is there."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: no {CONFIG}; a released PAM folder or a Hugging Face id goes to load_released")
    config = PamConfig.model_validate_json((path / CONFIG).read_text())
    pam = Pam(config)
    report = apply(pam, _tensors([path / WEIGHTS]))
    if not report.clean:
        raise CheckpointError(f"{path}: not a complete PAM\n{report}")
    if dtype is not None:
        cast(pam, dtype)
    return pam.to(device).eval(), load_tokenizer(path)


def load_released(
    source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> tuple[Pam, Any, LoadReport]:
    """A released PAM from a folder or a Hugging Face id such as `Perceive-Anything/PAM-3B`, with a full report.

    Tolerated: no output head (it is the embedding), SAM 2's weights inside the checkpoint (`model.vision_tower.*`; SAM
    2 is loaded from its own checkpoint), more embedding rows than `config.json` says. Raises CheckpointError when the
    folder cannot be a PAM: no configuration, no safetensors, or not one tensor that fits.
    """
    folder = _fetch(source)
    tensors = sorted(folder.glob("*.safetensors"))
    if not tensors or not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: needs config.json and *.safetensors (convert .bin files first)")
    found = dict(_tensors(tensors))
    config = _released_config(folder, found)
    pam = Pam(config, build_llm(config, dtype))
    cast(pam, dtype)
    report = apply(pam, iter(found.items()))
    if not report.loaded:
        raise CheckpointError(f"{folder}: no tensor of a PAM in it\n{report}")
    return pam.to(device).eval(), load_tokenizer(folder), report


def load_whole(
    source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> tuple[Pam, Any]:
    """`load_released` for use: raises CheckpointError unless every weight is there; what else there is, is logged."""
    pam, tokenizer, report = load_released(source, device, dtype)
    if not report.complete:
        raise CheckpointError(f"{source} is not a complete PAM\n{report}")
    if report.unexpected:
        log.warning("%s holds tensors that are no part of a PAM: %s", source, ", ".join(report.unexpected))
    return pam, tokenizer


def apply(pam: Pam, tensors: Iterator[tuple[str, Tensor]]) -> LoadReport:
    """Copies what fits into the model and says what did not."""
    wanted = {released_name(name): value for name, value in pam.state_dict().items()}
    tied = bool(pam.llm.config.tie_word_embeddings)
    seen: set[str] = set()
    unexpected: list[str] = []
    mis_shaped: list[str] = []
    tolerated: list[str] = []
    for name, value in tensors:
        target = wanted.get(name)
        if target is None:
            (tolerated if name.startswith(_TOWER) else unexpected).append(name)
            continue
        seen.add(name)
        if target.shape != value.shape:
            mis_shaped.append(f"{name} {list(value.shape)} instead of {list(target.shape)}")
        else:
            with torch.no_grad():
                target.copy_(value)
    missing = [name for name in wanted if name not in seen]
    if tied and _TIED in missing:
        missing.remove(_TIED)
        tolerated.append(_TIED)
    return LoadReport(len(seen) - len(mis_shaped), missing, unexpected, mis_shaped, tolerated)


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                yield name, opened.get_tensor(name)


def _released_config(folder: Path, found: dict[str, Tensor]) -> PamConfig:
    """Qwen2's keys of the released `config.json`, with the vocabulary that the embedding really has."""
    raw = json.loads((folder / "config.json").read_text())
    keys = set(PAM_SIZES["3b"])
    raw = (raw.get("rope_parameters") or {}) | raw  # where newer transformers write rope_theta
    llm = {key: raw[key] for key in keys if raw.get(key) is not None}
    missing = sorted({"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"} - set(llm))
    if missing:
        raise CheckpointError(f"{folder}/config.json lacks {', '.join(missing)}")
    if _EMBEDDING in found:
        llm["vocab_size"] = found[_EMBEDDING].shape[0]
    llm["tie_word_embeddings"] = _TIED not in found
    return PamConfig(llm=llm)


def _fetch(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "merges*"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{source}: neither a folder nor a Hugging Face repository that can be read: {error}"
        ) from error
