"""The Semantic Perceiver: mask tokens and learned semantic tokens attend to SAM 2's image embedding and back.

Written from the published description of PAM (arXiv 2506.05302, sec. 3) and the layout of its released weights: the
names of the parameters are those of the released state dict below `model.vision_resampler.`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import PerceiverConfig


class Attention(nn.Module):
    """Multi-head attention whose inner width is `dim / downsample`."""

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Nq, C), (B, Nk, C), (B, Nk, C) -> (B, Nq, C)."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, hidden), nn.Linear(hidden, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](F.relu(self.layers[0](x)))


class TwoWayLayer(nn.Module):
    """Self attention of the queries, queries to image, MLP, image to queries; norms after each.

    The first layer replaces its queries by their self attention, without position and residual.
    """

    def __init__(self, config: PerceiverConfig, first: bool) -> None:
        super().__init__()
        dim, heads = config.dim, config.heads
        self.first = first
        self.self_attn = Attention(dim, heads)
        self.cross_attn_token_to_image = Attention(dim, heads, downsample=2)
        self.mlp = Mlp(dim, config.mlp_dim)
        self.cross_attn_image_to_token = Attention(dim, heads, downsample=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, T, C) and keys (B, HW, C) with their positions -> the same, updated."""
        if self.first:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries))
        return queries, keys


class FourierGrid(nn.Module):
    """Random-Fourier positions of a grid's cell centres; the matrix is drawn once and saved with the weights."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, half_dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, half_dim))

    def forward(self, height: int, width: int) -> Tensor:
        """-> (height * width, 2 * half_dim), row by row."""
        matrix = self.positional_encoding_gaussian_matrix
        y = (torch.arange(height, device=matrix.device, dtype=matrix.dtype) + 0.5) / height
        x = (torch.arange(width, device=matrix.device, dtype=matrix.dtype) + 0.5) / width
        xy = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)
        angle = 2 * math.pi * ((2 * xy - 1) @ matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def space_to_depth(keys: Tensor, height: int, width: int, rate: int) -> Tensor:
    """(B, H*W, C) -> (B, H/r * W/r, C*r*r).

    The released model views the memory of `keys` as channels first without moving it, and then regroups that; the
    result is a grid of r x r cells read column by column. The weights were trained with it, so it stays.
    Raises ValueError when the grid is not divisible by `rate`.
    """
    if height % rate or width % rate:
        raise ValueError(f"a {height}x{width} grid cannot be folded by {rate}")
    batch, _, dim = keys.shape
    rows = keys.reshape(batch, width, height // rate, dim * rate).transpose(1, 2)
    return rows.reshape(batch, (height // rate) * (width // rate), dim * rate * rate)


class Perceiver(nn.Module):
    """SAM 2's image embedding and mask tokens -> visual tokens and semantic tokens."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        dim = config.dim
        self.pe_layer = FourierGrid(dim // 2)
        self.sem_tokens = nn.Embedding(config.tokens, dim)
        self.layers = nn.ModuleList([TwoWayLayer(config, first=i == 0) for i in range(config.depth)])
        self.final_attn_token_to_image = Attention(dim, config.heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim * 16, dim * 4)

    def forward(self, embed: Tensor, tokens: Tensor, half: bool) -> tuple[Tensor, Tensor]:
        """`embed` (B, C, H, W), mask `tokens` (B, T, C) -> semantic (B, S, C), visual (B, N, 4C).

        `half` folds the grid by 2 (N = HW/4: images and a clip's first frame), else by 4 with a projection (HW/16).
        """
        batch, _, height, width = embed.shape
        keys = embed.flatten(2).transpose(1, 2)
        queries = torch.cat([tokens, self.sem_tokens.weight.expand(batch, -1, -1).to(tokens.dtype)], dim=1)
        query_pe, key_pe = queries, self.pe_layer(height, width).to(keys.dtype)
        for layer in self.layers:
            queries, keys = layer(queries, keys, query_pe, key_pe)
        final = self.final_attn_token_to_image(queries + query_pe, keys + key_pe, keys)
        semantic = self.norm_final_attn(queries + final)[:, tokens.shape[1] :]
        if half:
            return semantic, space_to_depth(keys, height, width, 2)
        return semantic, self.proj(space_to_depth(keys, height, width, 4))
