"""PAM: perceiver, projector and language model, and how their parts become one sequence.

The frozen SAM 2 is not part of this module: its taps come in as tensors, computed just before (`model.vision`) or read
from a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import PamConfig
from model.perceiver import Perceiver
from model.projector import Projector
from model.templates import IGNORE, IMAGE_PLACEHOLDER


@dataclass(frozen=True)
class Batch:
    """B examples of one kind (all images or all clips).

    embed (B, F, C, h, w) and tokens (B, F, 2, C) are SAM 2's taps, F = 1 for images; `ids` and `labels` are one list an
    example, with one `IMAGE_PLACEHOLDER` each.
    """

    video: bool
    embed: Tensor
    tokens: Tensor
    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]] | None = None

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.video, self.embed.to(device), self.tokens.to(device), self.ids, self.labels)


@dataclass(frozen=True)
class Sequences:
    """Padded inputs of the language model: rows (B, L, H), mask (B, L) and labels (B, L)."""

    rows: Tensor
    mask: Tensor
    labels: Tensor


class Pam(nn.Module):
    """The trainable part of PAM. `config.perceiver.dim` must be SAM 2's width."""

    def __init__(self, config: PamConfig, llm: Any | None = None) -> None:
        super().__init__()
        self.config = config
        self.perceiver = Perceiver(config.perceiver)
        self.projector = Projector(config.perceiver.dim, config.hidden)
        self.llm: Any = llm if llm is not None else build_llm(config)

    @property
    def device(self) -> torch.device:
        return self.projector.image_newline.device

    def visual_rows(self, embed: Tensor, tokens: Tensor, video: bool) -> Tensor:
        """Taps (B, F, ...) -> (B, R, H): 1042 rows for an image and 5168 for 16 frames at PAM's full size.

        An image and the first frame of a clip at half resolution, the other frames at a quarter.
        """
        dtype = self.projector.image_newline.dtype
        embed, tokens = embed.to(dtype), tokens.to(dtype)
        first = self.projector(*self.perceiver(embed[:, 0], tokens[:, 0], half=True), video=video)
        if not video:
            return first
        batch, frames = embed.shape[:2]
        rest = self.perceiver(embed[:, 1:].flatten(0, 1), tokens[:, 1:].flatten(0, 1), half=False)
        rows = self.projector(*rest, video=True)
        return torch.cat([first, rows.reshape(batch, (frames - 1) * rows.shape[1], -1)], dim=1)

    def assemble(self, batch: Batch, left_pad: bool = False) -> Sequences:
        """Text embeddings with the visual rows in place of the placeholder, padded to one length.

        Raises ValueError when an example has not exactly one placeholder.
        """
        visual = self.visual_rows(batch.embed, batch.tokens, batch.video)
        labels = batch.labels or [[IGNORE] * len(ids) for ids in batch.ids]
        rows, targets = [], []
        for at, (ids, wanted) in enumerate(zip(batch.ids, labels, strict=True)):
            if sum(i == IMAGE_PLACEHOLDER for i in ids) != 1:
                raise ValueError(f"example {at} of the batch needs exactly one <image>")
            spot = list(ids).index(IMAGE_PLACEHOLDER)
            text = torch.tensor([*ids[:spot], *ids[spot + 1 :]], device=visual.device)
            embedded = self.llm.get_input_embeddings()(text)
            filler = [IGNORE] * visual.shape[1]
            row = torch.cat([embedded[:spot], visual[at].to(embedded.dtype), embedded[spot:]])
            target = torch.tensor([*wanted[:spot], *filler, *wanted[spot + 1 :]], device=visual.device)
            rows.append(row[: self.config.max_length])
            targets.append(target[: self.config.max_length])
        return _pad(rows, targets, left_pad)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed cross entropy over the labelled tokens, and their number (both scalars)."""
        sequences = self.assemble(batch)
        # padding is on the right and attention is causal: no real row sees it, so no mask is needed
        hidden = self.llm.model(inputs_embeds=sequences.rows, use_cache=False).last_hidden_state
        targets = sequences.labels[:, 1:]
        wanted = targets != IGNORE
        # only labelled positions reach the vocabulary: 152,000 columns a visual row would be most of the memory
        logits = self.llm.lm_head(hidden[:, :-1][wanted]).float()
        return F.cross_entropy(logits, targets[wanted], reduction="sum"), wanted.sum()


def _pad(rows: list[Tensor], targets: list[Tensor], left: bool) -> Sequences:
    longest = max(len(r) for r in rows)
    masks = []
    for at, row in enumerate(rows):
        gap = longest - len(row)
        side = (gap, 0) if left else (0, gap)
        masks.append(F.pad(torch.ones(len(row), dtype=torch.long, device=row.device), side))
        rows[at] = F.pad(row, (0, 0, *side))
        targets[at] = F.pad(targets[at], side, value=IGNORE)
    return Sequences(torch.stack(rows), torch.stack(masks), torch.stack(targets))


def build_llm(config: PamConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen2 with random weights of the configured shape."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    return AutoModelForCausalLM.from_config(Qwen2Config(**config.llm), dtype=dtype)


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The parameters in another precision; buffers (rotary frequencies, Fourier matrix) keep theirs."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module
