"""Settings of training: one small YAML a stage (`configs/train_*.yaml`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from model.augment import AugmentConfig
from model.config import PamConfig
from model.plan import BatchConfig, MixtureConfig
from schemas.base import Record

Part = Literal["perceiver", "projector", "newlines", "llm"]
Stage = Literal["1", "1.5", "2"]

STAGE_PARTS: dict[Stage, tuple[Part, ...]] = {
    "1": ("perceiver", "projector", "newlines"),
    "1.5": ("perceiver", "projector", "newlines"),
    "2": ("perceiver", "projector", "newlines", "llm"),
}
"""What each stage trains. SAM 2 is frozen always. Stage 1 sees images only."""


class TrainError(Exception):
    """A run cannot go, or cannot go on, as it is configured; the message says what to change."""


class StartConfig(Record):
    """What training starts from: exactly one of a folder written here, a released PAM, or a fresh model.

    A fresh model takes its language model from `llm` (a Qwen2 or Qwen2.5: folder or Hugging Face id), with its
    tokenizer; `fresh` then says which SAM 2 and perceiver (default: PAM's). Without `llm` all its weights are random
    and have the shapes of `fresh`; it needs a `tokenizer` (folder or id), or has one of `vocab_size` trained on the
    corpus.
    """

    checkpoint: Path | None = None
    released: str | None = None
    llm: str | None = None
    fresh: PamConfig | None = None
    tokenizer: str | None = None
    vocab_size: int = Field(default=1024, ge=300)

    @model_validator(mode="after")
    def _one(self) -> StartConfig:
        fresh = self.fresh if self.fresh is not None else self.llm
        if sum(value is not None for value in (self.checkpoint, self.released, fresh)) != 1:
            raise ValueError("start: give exactly one of checkpoint, released and fresh (or llm)")
        if self.llm is not None and self.fresh is not None and self.fresh.llm:
            raise ValueError("start: the language model is that of llm or that of fresh.llm, not both")
        if self.llm is None and self.fresh is not None and not self.fresh.llm:
            raise ValueError(
                "start: fresh needs the shape of its language model (fresh.llm), or one to start from (llm)"
            )
        return self


class DataConfig(Record):
    """What is read: shards (a split of a pack, a glob, a tar; any fsspec URL) and PAM-native annotation files.

    `feature_cache` keeps SAM 2's taps: in `memory`, on the `device`, or in a folder; it needs `prompt_variants` > 0,
    the number of fixed prompts drawn for each target (0 draws anew at every visit); `cache_images: false` does both for
    clips only, which cost the most to track. `hold` reads all examples and fills the cache before the first step, for
    models that learn faster than files are read. `loader_workers` decode in processes of their own.
    """

    shards: list[str] = []
    jsonl: list[Path] = []
    jsonl_root: Path = Path()
    storage_options: dict[str, Any] = {}
    clip_frames: int = Field(default=32, ge=1)
    mixture: MixtureConfig = MixtureConfig()
    augment: AugmentConfig = AugmentConfig()
    prompt_variants: int = Field(default=0, ge=0)
    feature_cache: str | None = None
    cache_images: bool = True
    hold: bool = False
    loader_workers: int = Field(default=0, ge=0)
    shuffle_captions: bool = False

    @model_validator(mode="after")
    def _something(self) -> DataConfig:
        if not self.shards and not self.jsonl:
            raise ValueError("data: name shards or jsonl files")
        if self.feature_cache and not self.prompt_variants:
            raise ValueError(
                "data: a feature_cache needs prompt_variants of 1 or more, or nothing would be found again"
            )
        if self.hold and not (self.feature_cache and self.cache_images):
            raise ValueError("data: hold needs a feature_cache that keeps images too (cache_images: true)")
        return self


class OptimizerConfig(Record):
    """AdamW with linear warm-up and a cosine to `final_share` of the rate. `warmup` is a share of all steps."""

    learning_rate: float = Field(default=1e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    final_share: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)


class TrainConfig(Record):
    """One stage of training.

    Stops after `epochs`, or `max_steps`, or `max_seconds` of stepping, whichever comes first; with `max_seconds` the
    schedule follows the clock. `micro_images` and `micro_clips` examples go through the model at once on each worker;
    what a global batch has more is accumulated. `shard_model` is FSDP2 (default: stage 2 on several workers).
    `ray_workers` > 1 starts Ray Train; under torchrun the environment decides.

    A run goes on from the checkpoints in `output` where they are its own; others are refused, or dropped with
    `start_over`. Up to `bad_captions` captions that cannot be read are left out and named, more end the run. Every
    `sample_every` steps some captions are generated into `samples.jsonl`. `tensorboard: auto` writes its files where
    the package is installed.
    """

    output: Path
    stage: Stage = "2"
    start: StartConfig
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    micro_images: int = Field(default=8, ge=1)
    micro_clips: int = Field(default=1, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    trainable: tuple[Part, ...] | None = None
    published_labels: bool = False
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    device: str = "auto"
    shard_model: bool | None = None
    ray_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    max_failures: int = Field(default=3, ge=0)
    save_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=10, ge=1)
    sample_every: int | None = Field(default=None, ge=1)
    samples: int = Field(default=4, ge=1)
    bad_steps: int = Field(default=3, ge=1)
    bad_captions: int = Field(default=10, ge=0)
    start_over: bool = False
    tensorboard: bool | Literal["auto"] = "auto"
    seed: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that learn."""
        return self.trainable if self.trainable is not None else STAGE_PARTS[self.stage]

    @property
    def mixture(self) -> MixtureConfig:
        """The mixture; stage 1 leaves clips out."""
        if self.stage != "1":
            return self.data.mixture
        tasks = self.data.mixture.tasks | {"video": 0.0, "stream": 0.0}
        return self.data.mixture.model_copy(update={"tasks": tasks})
