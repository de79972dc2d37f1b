"""Which SAM 2 weights a configuration names, and where they are."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from schemas.keys import digest_stream

NANO = "nano"
NANO_WEIGHTS = Path(__file__).parent / "weights" / "nano.safetensors"
NANOS = {NANO: NANO_WEIGHTS, "nano-words": NANO_WEIGHTS.with_name("nano_words.safetensors")}
"""The small SAM 2s of this package: `nano` for masks; `nano-words` learned beside masks what its targets are, for a
captioner behind it."""

CONFIGS = {
    "facebook/sam2-hiera-tiny": ("configs/sam2/sam2_hiera_t.yaml", "sam2_hiera_tiny.pt"),
    "facebook/sam2-hiera-small": ("configs/sam2/sam2_hiera_s.yaml", "sam2_hiera_small.pt"),
    "facebook/sam2-hiera-base-plus": ("configs/sam2/sam2_hiera_b+.yaml", "sam2_hiera_base_plus.pt"),
    "facebook/sam2-hiera-large": ("configs/sam2/sam2_hiera_l.yaml", "sam2_hiera_large.pt"),
    "facebook/sam2.1-hiera-tiny": ("configs/sam2.1/sam2.1_hiera_t.yaml", "sam2.1_hiera_tiny.pt"),
    "facebook/sam2.1-hiera-small": ("configs/sam2.1/sam2.1_hiera_s.yaml", "sam2.1_hiera_small.pt"),
    "facebook/sam2.1-hiera-base-plus": ("configs/sam2.1/sam2.1_hiera_b+.yaml", "sam2.1_hiera_base_plus.pt"),
    "facebook/sam2.1-hiera-large": ("configs/sam2.1/sam2.1_hiera_l.yaml", "sam2.1_hiera_large.pt"),
}
"""Hugging Face id to the package's configuration and the file of the weights."""


class CheckpointError(Exception):
    """The named weights are not there or not what they say; the message says how to get them."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights at hand: `config` is the sam2 package's configuration (None for the nano), `path` the file."""

    config: str | None
    path: Path


def find_checkpoint(name: str) -> Checkpoint:
    """The weights behind `checkpoint`: one of `NANOS`, a `.pt` of SAM 2, or a Hugging Face id (fetched if needed).

    Raises `CheckpointError`.
    """
    if name in NANOS:
        if not NANOS[name].exists():
            raise CheckpointError(
                f"the nano weights are not at {NANOS[name]}: reinstall, or run `perceive train sam-nano`"
            )
        return Checkpoint(None, NANOS[name])
    if name in CONFIGS:
        return Checkpoint(CONFIGS[name][0], _fetch(name, CONFIGS[name][1]))
    path = Path(name).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"there is no SAM 2 checkpoint {name!r}: give a path to a .pt file, 'nano', or one of {', '.join(CONFIGS)}"
        )
    if path.suffix == ".safetensors":
        return Checkpoint(None, path)
    matches = [config for config, file in CONFIGS.values() if Path(file).stem in path.stem]
    if not matches:
        known = ", ".join(file for _, file in CONFIGS.values())
        raise CheckpointError(f"{path}: cannot tell its size from its name; keep one of the names {known} in it")
    return Checkpoint(max(matches, key=len), path)


def _fetch(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(repo_id=name, filename=file))
    except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"the SAM 2 weights {name} are neither in the Hugging Face cache nor to be had ({type(error).__name__}). "
            f"Where there is a network run `hf download {name} {file}` and set refine.checkpoint to the file, "
            "or set HF_HOME to a cache that holds it; checkpoint: nano and backend: grabcut need no download"
        ) from error


def checkpoint_identity(name: str) -> str:
    """What identifies the weights in a fingerprint: the id, or the digest of a file's bytes."""
    if name in CONFIGS:
        return name
    path = NANO_WEIGHTS if name == NANO else Path(name).expanduser()
    if not path.is_file():
        return name  # opening the stage says what is missing
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as stream:
        return digest_stream(stream).hex()
