"""What the small SAM 2 is asked beside masks while it trains: kind, colour, place, size and outline of the target.

The public SAM 2 sees more than edges because its encoder was pre-trained on many pictures; a small one trained on masks
alone keeps little of what a region is. These readings are linear and thrown away after training: what they can read,
a region captioner behind SAM 2 can learn from few examples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.shapes.palette import KINDS

UNKNOWN = -1
_MOMENTS = 9
_MEASURES = 3 + 3 + _MOMENTS
_LEAST = 24
"""Pixels, at half size, below which an outline says nothing."""


class Attributes(nn.Module):
    """Readings from a mask token (r, C) and from the image embedding under the mask."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(KINDS) + _MEASURES))
        self.cells = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(KINDS) + _MEASURES))

    def loss(self, token: Tensor, embed: Tensor, truth: Tensor, pixels: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of both readings, and the share of kinds that the token's names rightly.

        `token` (r, C), `embed` (r, C, h, w), `truth` bool (r, S, S), `pixels` uint8 (r, 3, S, S), `kinds` (r,) places
        in the table of kinds or `UNKNOWN`. Rows whose truth is (nearly) empty do not count.
        """
        with torch.autocast(token.device.type, enabled=False):  # places need more than bfloat16's eight bits
            return self._loss(token, embed, truth[:, ::2, ::2], pixels, kinds)

    def _loss(
        self, token: Tensor, embed: Tensor, truth: Tensor, pixels: Tensor, kinds: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen = truth.flatten(1).sum(1) >= _LEAST
        if not bool(seen.any()):
            return 0 * token.sum(), token.detach().sum() * 0
        token, embed, truth, kinds = token[seen].float(), embed[seen].float(), truth[seen].float(), kinds[seen]
        wanted = measures(truth, pixels[seen][:, :, ::2, ::2].float())
        share = F.adaptive_avg_pool2d(truth[:, None], (embed.shape[-2], embed.shape[-1]))
        pooled = (embed * share).sum((2, 3)) / share.sum((2, 3))
        by_token, by_cells = self.token(token), self.cells(pooled)
        named = kinds != UNKNOWN
        right = (by_token[:, : len(KINDS)].argmax(1) == kinds)[named].float().mean()
        return _gap(by_token, wanted, kinds) + 0.5 * _gap(by_cells, wanted, kinds), right.detach()


def _gap(read: Tensor, wanted: Tensor, kinds: Tensor) -> Tensor:
    names, told = read[:, : len(KINDS)], read[:, len(KINDS) :]
    gaps = (told - wanted).abs().mean(0)
    # a place is worth a word only where it is right to a hundredth of the picture
    return F.cross_entropy(names, kinds, ignore_index=UNKNOWN) + 4 * gaps[:2].mean() + gaps[2:].mean() * 2


def measures(truth: Tensor, pixels: Tensor) -> Tensor:
    """Of masks (r, H, W) of 0 and 1 on RGB (r, 3, H, W): centre (-1 to 1), log area, mean colour (-1 to 1), moments.

    The complex moments mean(z^p conj(z)^q) of the outline, scaled by its spread, tell how it is turned and what it is:
    (p, q) = (2,0), (3,0), (2,1), (4,0), real and imaginary, and (2,2).
    """
    height, width = truth.shape[1:]
    y = (torch.arange(height, device=truth.device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=truth.device) + 0.5) / width * 2 - 1
    area = truth.sum((1, 2))
    cx, cy = (truth.sum(1) @ x) / area, (truth.sum(2) @ y) / area
    colour = (pixels * truth[:, None]).sum((2, 3)) / area[:, None] / 127.5 - 1
    z = torch.complex(
        (x[None, None] - cx[:, None, None]).expand_as(truth), (y[None, :, None] - cy[:, None, None]).expand_as(truth)
    )
    weight = truth / area[:, None, None]
    spread = (z.abs().square() * weight).sum((1, 2)).sqrt().clamp(min=1e-3)
    z = z / spread[:, None, None]
    square = z * z
    parts = [square, square * z, square * z.conj(), square * square]
    found = torch.stack([(part * weight).sum((1, 2)) for part in parts], dim=1)
    fourth = (square.abs().square() * weight).sum((1, 2))
    size = (area / (height * width)).clamp(min=1e-4).log() / 2 + 2
    return torch.cat([torch.stack([cx, cy, size], 1), colour, found.real, found.imag, fourth[:, None] - 1.5], dim=1)
