"""From the perceiver's widths to the language model's, and the vectors that separate the parts of a sequence.

Names below `model.` in the released state dict: `mm_projector_img.{0,2}`, `mm_projector_semT.{0,2}` and the three
newline vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))


class Projector(nn.Module):
    """`mlp2x_gelu` for visual and for semantic tokens; newline vectors drawn from N(0, 1) / sqrt(hidden)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.mm_projector_img = _mlp(dim * 4, hidden)
        self.mm_projector_semT = _mlp(dim, hidden)
        scale = hidden**-0.5
        self.image_newline = nn.Parameter(torch.randn(hidden) * scale)
        self.semT_newline = nn.Parameter(torch.randn(hidden) * scale)
        self.frame_newline = nn.Parameter(torch.randn(hidden) * scale)

    def forward(self, semantic: Tensor, visual: Tensor, video: bool) -> Tensor:
        """(B, S, C), (B, N, 4C) -> (B, N + S + 2, hidden), with one more row for a frame of a video."""
        batch = visual.shape[0]
        parts = [self.mm_projector_img(visual), self._row(self.image_newline, batch)]
        parts += [self.mm_projector_semT(semantic), self._row(self.semT_newline, batch)]
        if video:
            parts.append(self._row(self.frame_newline, batch))
        return torch.cat(parts, dim=1)

    def _row(self, vector: Tensor, batch: int) -> Tensor:
        return vector.expand(batch, 1, -1)
