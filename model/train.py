"""Training a PAM from shards: one loop, one process or many.

`train(config)` runs a stage from its configuration and returns what came of it. A step is a global batch; its loss is
the sum over all labelled tokens of all workers divided by their number, so that the number of workers does not matter.
A run that was killed goes on from its last checkpoint with the same steps, prompts and rates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model import checkpoint
from model.data import Held, MicroBatch, Reading, StepData, batches
from model.features import FeatureCache, fingerprint, look
from model.identity import differing, run_identity
from model.optim import NanGuard, build_optimizer, rate, unfreeze
from model.pam import Batch, Pam, cast
from model.plan import Step, plan_epoch, weights
from model.prepare import prepare
from model.progress import Checkpoints, Journal, Progress, log
from model.samples import sample_captions
from model.setup import build_model, open_corpus
from model.train_config import TrainConfig, TrainError
from model.vision import FrozenSam, load_sam
from model.world import World, Wrapped, join_world


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. `checkpoint` is a folder for `PAM.from_pretrained`; the losses are means a token.

    `lost_captions` could not be read.
    """

    checkpoint: Path
    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens: int
    skipped_steps: int
    metrics: Path
    lost_captions: int = 0


def train(config: TrainConfig, sam: FrozenSam | None = None, cache: FeatureCache | None = None) -> TrainResult:
    """Runs one stage. `sam` replaces the SAM 2 that the model names (it must have its width).

    `cache` holds taps of earlier runs, and is added to; it takes the place of `feature_cache`.

    With `ray_workers` > 1 the workers are Ray Train's; under torchrun they are torchrun's.
    """
    if config.ray_workers > 1:
        from model.train_ray import train_with_ray

        return train_with_ray(config)
    with join_world(config.device) as world:
        return Trainer(config, world, sam, cache).run()


class Trainer:
    """One worker's part of a run; the loop is `run`."""

    def __init__(
        self, config: TrainConfig, world: World, sam: FrozenSam | None = None, cache: FeatureCache | None = None
    ) -> None:
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high" if world.device.type == "cuda" else "highest")
        self.config, self.world = config, world
        self.corpus = open_corpus(config.data)
        pam, self.tokenizer = build_model(config, self.corpus, world)
        self.sam = (sam or load_sam(pam.config.sam, world.device)).to(world.device)
        self.learning = unfreeze(pam, config.parts)
        if config.gradient_checkpointing:
            pam.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        sharded = config.shard_model if config.shard_model is not None else config.stage == "2" and world.ranks > 1
        self.wrapped = Wrapped(pam.train(), world, sharded, config.precision == "bf16")
        self.optimizer = build_optimizer(pam, config.optimizer)
        self.checkpoints = Checkpoints(config.output, config.keep_checkpoints)
        self.guard = NanGuard(config.bad_steps)
        self.lost: set[int] = set()
        self.identity = run_identity(config, self.corpus.index, self.tokenizer, pam.config)
        self.progress = self._resume()
        cached = config.data.feature_cache
        folder = None if cached in (None, "memory", "device") else Path(str(cached))
        place = world.device if cached == "device" else "cpu"
        self.cache = cache or (FeatureCache(folder, place) if cached else None)
        self.eye = fingerprint(self.sam, pam.config.video_frames) if self.cache is not None else ""
        self.held: Held | None = None

    def run(self) -> TrainResult:
        """Steps until the end, then writes the trained model."""
        journal = Journal(self.config.output, self.progress.step, self.config.tensorboard) if self.world.leads else None
        if self.config.data.hold:
            self.prepare()
        per_epoch = len(self._plan(0))
        total = min(self.config.epochs * per_epoch, self.config.max_steps or self.config.epochs * per_epoch)
        first = last = float("nan")
        started, before = time.monotonic(), self.progress
        for number, micro in self._steps(per_epoch, total):
            loss, norm, tokens = self._step(micro, self._progress_share(number, total))
            seconds = before.seconds + time.monotonic() - started
            if self.config.max_seconds is not None:  # one clock for all: it decides the next rate and the end
                seconds = self.world.share(seconds)
            self.progress = Progress(number + 1, seconds, self.progress.tokens + tokens, self.guard.skipped)
            first, last = (loss if first != first else first), loss
            self._after(journal, micro, loss, norm, tokens)
            if self.config.max_seconds is not None and seconds >= self.config.max_seconds:
                break
        return self._finish(first, last)

    def prepare(self) -> None:
        """Reads every example that the mixture can draw, so that the steps need no file."""
        index, data = self.corpus.index, self.data([])
        rows = [row for row, weight in enumerate(weights(index, self.config.mixture)) if weight > 0]
        frames, workers = self.wrapped.pam.config.video_frames, self.config.data.loader_workers
        self.held, lost = prepare(data, self.sam, frames, rows, workers)
        self._leave_out(lost)

    def _leave_out(self, lost: dict[int, str]) -> None:
        """Counts captions that could not be read, on all workers alike. Raises TrainError for too many."""
        for row, why in lost.items():
            if row not in self.lost:
                log.warning("caption %d is left out: %s", row, why)
        self.lost |= {row for found in self.world.gather(list(lost)) for row in found}
        if len(self.lost) > self.config.bad_captions:
            raise TrainError(
                f"{len(self.lost)} captions cannot be read, more than bad_captions ({self.config.bad_captions}): mend "
                f"what the log names, or raise bad_captions. Rows {sorted(self.lost)[:8]}"
            )

    def _steps(self, per_epoch: int, total: int) -> Iterator[tuple[int, list[MicroBatch]]]:
        number = self.progress.step
        while number < total:
            epoch, start = divmod(number, per_epoch)
            data = self.data(self._plan(epoch, per_epoch))
            # what is held is here already: no process has to read ahead
            workers = 0 if self.held is not None else self.config.data.loader_workers
            for micro in batches(data, start, workers):
                yield number, micro
                number += 1
                if number >= total:
                    return

    def data(self, steps: list[Step]) -> StepData:
        """This worker's share of these steps."""
        config = self.config
        reading = Reading(
            self.sam.image_size,
            config.data.augment,
            config.published_labels,
            config.data.prompt_variants,
            config.data.cache_images,
            eye=self.eye,
        )
        micro = config.micro_images, config.micro_clips
        rank, ranks = self.world.rank, self.world.ranks
        return StepData(self.corpus, steps, self.tokenizer, reading, *micro, rank, ranks, self.cache, self.held)

    def _plan(self, epoch: int, count: int | None = None) -> list[Step]:
        config = self.config
        hard_negatives = config.data.augment.hard_negatives
        return plan_epoch(self.corpus.index, epoch, config.batch, config.mixture, hard_negatives, count)

    def _progress_share(self, number: int, total: int) -> float:
        by_steps = number / total
        if self.config.max_seconds is None:
            return by_steps
        return max(by_steps, min(self.progress.seconds / self.config.max_seconds, 1.0))

    def _step(self, micro: list[MicroBatch], share: float) -> tuple[float, float, int]:
        """Forward and backward over this worker's part of the global batch, then one update on all workers."""
        loss = torch.zeros((), device=self.world.device)
        count = torch.zeros((), device=self.world.device)
        for at, part in enumerate(micro):
            with self.wrapped.accumulate(last=at == len(micro) - 1):
                summed, tokens = self.forward(part)
                summed.backward()
            loss += summed.detach()
            count += tokens
        lost = {row: why for part in micro for row, why in part.lost.items()}
        loss_sum, tokens_sum, lost_sum = self.world.total(loss, count, float(len(lost)))
        if lost_sum:
            self._leave_out(lost)
        mean = loss_sum / max(tokens_sum, 1)
        norm = self.wrapped.gradients(1 / max(tokens_sum, 1), self.config.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.config.optimizer, share)
        if self.guard.take(mean, norm, self.progress.step, [row for part in micro for row in part.rows]):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean, norm, int(tokens_sum)

    def forward(self, part: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed loss and number of labelled tokens of a micro-batch."""
        frames = self.wrapped.pam.config.video_frames
        shown = look(self.sam, part.sights, part.video, frames, self.cache)
        batch = Batch(part.video, shown.embed, shown.tokens, part.ids, part.labels)
        half = self.config.precision == "bf16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=half):
            summed, tokens = self.wrapped.module(batch)
        return summed, tokens

    def _after(self, journal: Journal | None, micro: list[MicroBatch], loss: float, norm: float, tokens: int) -> None:
        config, done = self.config, self.progress
        if journal is not None and (done.step % config.log_every == 0 or done.step == 1):
            journal.metrics(
                {
                    "step": done.step,
                    "loss": loss,
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "gradient_norm": norm,
                    "tokens": tokens,
                    "video": micro[0].video,
                    "seconds": round(done.seconds, 3),
                    "tokens_per_second": done.tokens / max(done.seconds, 1e-9),
                    "skipped_steps": done.skipped,
                    "lost_captions": len(self.lost),
                }
            )
        if config.sample_every and done.step % config.sample_every == 0:
            self._show(journal)
        if done.step % config.save_every == 0:
            self._save()

    def _show(self, journal: Journal | None) -> None:
        """Samples of the first worker; a sharded model is gathered for it, in the precision of training."""
        pam, state = self.wrapped.pam, self.wrapped.state() if self.wrapped.sharded else None
        if journal is not None:
            if state is not None:
                pam = _whole(pam, state).to(self.world.device)
                if self.config.precision == "bf16":
                    cast(pam, torch.bfloat16)
            journal.samples(sample_captions(self, pam, self.config.samples))
        self.world.wait()

    def _save(self) -> None:
        state = {
            "model": self.wrapped.state(),
            "optimizer": self.wrapped.optimizer_state(self.optimizer),
            "progress": {"step": self.progress.step, "seconds": self.progress.seconds}
            | {"tokens": self.progress.tokens, "skipped": self.guard.skipped},
            "rng": torch.get_rng_state(),
            "run": self.identity,
            "lost": sorted(self.lost),
        }
        if self.world.leads:
            self.checkpoints.save(self.progress.step, state)
        self.world.wait()

    def _resume(self) -> Progress:
        path = self.world.share(self.checkpoints.latest() if self.world.leads else None)
        if path is None:
            return Progress()
        state = Checkpoints.load(path)
        changed = differing(state.get("run", {}), self.identity)
        if changed and not self.config.start_over:
            raise TrainError(
                f"{path} is of another run: {', '.join(changed)} differ. Name another output folder, or set "
                "start_over: true to drop its checkpoints"
            )
        if changed:
            self.world.wait()  # until all have read it
            if self.world.leads:
                log.warning("%s is of another run (%s differ): it is dropped", path, ", ".join(changed))
                self.checkpoints.drop()
            return Progress()
        self.lost = set(state["lost"])
        self.wrapped.load_state(state["model"])
        self.wrapped.load_optimizer(self.optimizer, state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.guard.skipped = state["progress"]["skipped"]
        log.info("going on from %s", path)
        return Progress(**state["progress"])

    def _finish(self, first: float, last: float) -> TrainResult:
        state, folder = self.wrapped.state(), self.config.output / "model"
        self._save()
        if self.world.leads:
            whole = self.wrapped.pam if not self.wrapped.sharded else _whole(self.wrapped.pam, state)
            checkpoint.save(whole, folder, self.tokenizer)
        self.world.wait()
        done = self.progress
        metrics = self.config.output / "metrics.jsonl"
        counts = done.seconds, done.tokens, done.skipped
        return TrainResult(folder, done.step, first, last, *counts, metrics, len(self.lost))


def _whole(sharded: Pam, state: dict[str, Any]) -> Pam:
    pam = Pam(sharded.config)
    pam.load_state_dict(state)
    return pam
