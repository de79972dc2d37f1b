"""PAM: perceiver, projector and language model, and how their parts become one sequence.

The frozen SAM 2 is not part of this module: its taps come in as tensors, computed just before (`model.vision`) or read
from a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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

        An image and the first frame of a clip at half resolution (see `first_half`), the other frames at a quarter.
        """
        dtype = self.projector.image_newline.dtype
        embed, tokens = embed.to(dtype), tokens.to(dtype)
        first = self.projector(*self.perceiver(embed[:, 0], tokens[:, 0], half=self.config.first_half), video=video)
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
        laid = _lay_out(batch, visual.shape[1], self.config.max_length, left_pad)
        ids, source, mask, labels = (torch.from_numpy(part).to(visual.device) for part in laid)
        embedded = self.llm.get_input_embeddings()(ids)
        shown = visual.to(embedded.dtype).gather(1, source.clamp(min=0)[..., None].expand_as(embedded))
        rows = torch.where((source >= 0)[..., None], shown, embedded) * mask[..., None].to(embedded.dtype)
        return Sequences(rows, mask, labels)

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


def _lay_out(batch: Batch, visual: int, most: int, left_pad: bool) -> tuple[np.ndarray, ...]:
    """Where everything goes, int64 (B, L): text ids, visual row (-1 where there is text), mask, labels."""
    lengths = [min(len(ids) - 1 + visual, most) for ids in batch.ids]
    shape = len(lengths), max(lengths)
    text, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    source, labels = np.full(shape, -1, np.int64), np.full(shape, IGNORE, np.int64)
    for at, (given, length) in enumerate(zip(batch.ids, lengths, strict=True)):
        ids = np.asarray(given, np.int64)
        spots = np.flatnonzero(ids == IMAGE_PLACEHOLDER)
        if len(spots) != 1:
            raise ValueError(f"example {at} of the batch needs exactly one <image>")
        spot, here = int(spots[0]), slice(shape[1] - length, None) if left_pad else slice(0, length)

        def spread(values: np.ndarray, filling: np.ndarray, spot: int = spot) -> np.ndarray:
            return np.concatenate([values[:spot], filling, values[spot + 1 :]])[:most]

        text[at, here] = spread(ids, np.zeros(visual, np.int64))
        source[at, here] = spread(np.full(len(ids), -1), np.arange(visual))
        mask[at, here] = 1
        if batch.labels is not None:
            labels[at, here] = spread(np.asarray(batch.labels[at], np.int64), np.full(visual, IGNORE))
    return text, source, mask, labels


def build_llm(config: PamConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen2 with random weights of the configured shape."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    return AutoModelForCausalLM.from_config(Qwen2Config(**config.llm), dtype=dtype)


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The parameters in another precision; buffers (rotary frequencies, Fourier matrix) keep theirs."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module
