"""Greedy decoding at the speed of memory: fused weights, a static key-value cache, one CUDA graph a token.

Hugging Face's `generate` launches about a thousand small kernels a token from Python; at batch 1 the GPU waits for
them. Here a step writes only into fixed buffers, so that on a GPU it is captured once and replayed. On a CPU the same
code runs step by step. The tokens are those of `generate` (exactly in float32; in bfloat16 up to near ties).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHECK_EVERY = 8
"""Steps between two looks at whether all rows have ended; each look waits for the GPU."""
_GRAIN = 256
"""Cache lengths are multiples of this, so that prompts of similar length share a graph."""


_WARM_UP = 3
"""Steps before a capture; each writes one row of the cache, as a real one does."""


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (B, heads, T, D), cos and sin (B, 1, T, D)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


class FastDecoder:
    """Decodes a Qwen2 (`transformers.Qwen2ForCausalLM`) whose weights it fuses in place; the model stays usable.

    `graph` captures the step as a CUDA graph (default: on a GPU); `compiled` runs it through `torch.compile` first,
    which costs a minute once and saves some time a token.
    """

    def __init__(self, llm: Any, graph: bool | None = None, compiled: bool = False) -> None:
        self.llm, config = llm, llm.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.device, self.dtype = llm.lm_head.weight.device, llm.lm_head.weight.dtype
        self.graph = self.device.type == "cuda" if graph is None else graph
        self.compiled = compiled
        self.layers = [_fuse(layer) for layer in llm.model.layers]
        self._runs: dict[tuple[int, int], _Run] = {}

    @torch.no_grad()
    def generate(self, rows: Tensor, mask: Tensor, max_new_tokens: int, end: int) -> list[list[int]]:
        """Embedded prompts (B, L, H), padded on the left as `mask` (B, L) says -> token ids a row, `end` left out."""
        batch, length = mask.shape
        capacity = cache_length(length, max_new_tokens)
        run = self._runs.get((batch, capacity))
        if run is None:
            self._runs.clear()  # one cache at a time: it is the largest buffer
            run = self._runs[batch, capacity] = _Run(self, batch, capacity)
        return run(rows.to(self.dtype), mask, max_new_tokens, end)

    def _block(self, layer: dict[str, Any], x: Tensor, cos: Tensor, sin: Tensor, attend: Any) -> Tensor:
        batch, steps, _ = x.shape
        h = F.rms_norm(x, x.shape[-1:], layer["norm1"], layer["eps"])
        qkv = F.linear(h, layer["qkv"], layer["bias"]).view(batch, steps, -1, self.width).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.groups, self.groups], dim=1)
        out = attend(_turn(q, cos, sin), _turn(k, cos, sin), v)
        x = x + F.linear(out.transpose(1, 2).reshape(batch, steps, -1), layer["out"])
        h = F.rms_norm(x, x.shape[-1:], layer["norm2"], layer["eps"])
        gate, up = F.linear(h, layer["gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer["down"])

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angle = positions[:, None, :, None].float() * self.llm.model.rotary_emb.inv_freq.float()
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def _logits(self, x: Tensor) -> Tensor:
        norm = self.llm.model.norm
        return F.linear(F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon), self.llm.lm_head.weight)


def cache_length(prompt: int, max_new_tokens: int) -> int:
    """Rows of the cache for a prompt and its answer, and at least for the steps that warm a capture up."""
    return -(-(prompt + max(max_new_tokens, _WARM_UP + 1)) // _GRAIN) * _GRAIN


class _Run:
    """The fixed buffers of one batch size and cache length, and the captured step."""

    def __init__(self, decoder: FastDecoder, batch: int, capacity: int) -> None:
        self.decoder, device = decoder, decoder.device
        shape = (len(decoder.layers), batch, decoder.groups, capacity, decoder.width)
        self.keys = torch.zeros(shape, dtype=decoder.dtype, device=device)
        self.values = torch.zeros(shape, dtype=decoder.dtype, device=device)
        self.bias = torch.zeros(batch, 1, 1, capacity, dtype=torch.float32, device=device)
        self.token, self.position, self.end = (
            torch.zeros(n, dtype=torch.long, device=device) for n in (batch, batch, 1)
        )
        self.slot, self.count = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.out = torch.zeros(batch, capacity, dtype=torch.long, device=device)
        self.step = torch.compile(self._step, fullgraph=True) if decoder.compiled else self._step
        self.captured: torch.cuda.CUDAGraph | None = None

    def __call__(self, rows: Tensor, mask: Tensor, max_new_tokens: int, end: int) -> list[list[int]]:
        self._start(rows, mask, end)
        if self.decoder.graph and self.captured is None:
            self._capture()
            self._start(rows, mask, end)
        made = 1
        while made < max_new_tokens:
            if made % _CHECK_EVERY == 0 and bool(self.done.all()):
                break
            if self.captured is not None:
                self.captured.replay()
            else:
                self.step()
            made += 1
        return [_until(row, end) for row in self.out[:, :made].tolist()]

    def _start(self, rows: Tensor, mask: Tensor, end: int) -> None:
        """Fills the cache with the prompt and takes the first token."""
        length = mask.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        visible = _visible(mask)
        decoder, x, angles = self.decoder, rows, self.decoder._angles(positions)
        for at, layer in enumerate(decoder.layers):

            def attend(q: Tensor, k: Tensor, v: Tensor, at: int = at) -> Tensor:
                self.keys[at, :, :, :length], self.values[at, :, :, :length] = k, v
                return _attend_prompt(q, k, v, visible)

            x = decoder._block(layer, x, *angles, attend)
        self.bias.fill_(float("-inf"))
        self.bias[:, 0, 0, :length].masked_fill_(mask.bool(), 0.0)
        self.end.fill_(end)
        self.slot.fill_(length)
        self.count.zero_()
        self.done.zero_()
        self.position.copy_(positions[:, -1] + 1)
        self._take(decoder._logits(x[:, -1]))

    def _step(self) -> None:
        """One token for each row: everything is read from and written to the fixed buffers."""
        decoder = self.decoder
        self.bias.index_fill_(3, self.slot, 0.0)
        x = F.embedding(self.token[:, None], decoder.llm.model.embed_tokens.weight)
        angles = decoder._angles(self.position[:, None])
        for at, layer in enumerate(decoder.layers):

            def attend(q: Tensor, k: Tensor, v: Tensor, at: int = at) -> Tensor:
                self.keys[at].index_copy_(2, self.slot, k)
                self.values[at].index_copy_(2, self.slot, v)
                return _attend_one(q, self.keys[at], self.values[at], self.bias)

            x = decoder._block(layer, x, *angles, attend)
        self.slot += 1
        self.position += 1
        self._take(decoder._logits(x[:, -1]))

    def _take(self, logits: Tensor) -> None:
        self.token.copy_(torch.where(self.done, self.end, logits.float().argmax(-1)))
        self.done |= self.token == self.end
        self.out.index_copy_(1, self.count, self.token[:, None])
        self.count += 1

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.captured):
            self.step()


def _fuse(layer: Any) -> dict[str, Any]:
    """One matrix for q, k, v and one for gate, up; the module's own parameters become views of them."""
    attention, mlp = layer.self_attn, layer.mlp
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    qkv = _share([p.weight for p in parts])
    bias = _share([p.bias for p in parts])
    gate_up = _share([mlp.gate_proj.weight, mlp.up_proj.weight])
    norm1, norm2 = layer.input_layernorm, layer.post_attention_layernorm
    eps = norm1.variance_epsilon
    fused = {"qkv": qkv, "bias": bias, "gate_up": gate_up, "norm1": norm1.weight, "norm2": norm2.weight, "eps": eps}
    return fused | {"out": attention.o_proj.weight, "down": mlp.down_proj.weight}


def _share(parameters: list[torch.nn.Parameter]) -> Tensor:
    whole = torch.cat([p.data for p in parameters])
    start = 0
    for parameter in parameters:
        size = parameter.shape[0]
        parameter.data = whole[start : start + size]
        start += size
    return whole


def _visible(mask: Tensor) -> Tensor | None:
    """Which of the prompt's rows see which: (B, 1, L, L), or None where there is no padding and causal order is all."""
    if bool(mask.all()):
        return None
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    seen = causal & mask.bool()[:, None, None, :]
    return seen | torch.eye(length, dtype=torch.bool, device=mask.device)  # a padding row sees itself: no NaN


def _attend_prompt(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """One query row a head over the whole cache; `bias` hides what is not written. q (B, heads, 1, D)."""
    batch, heads, _, width = q.shape
    grouped = q.view(batch, keys.shape[1], heads // keys.shape[1], width)
    scores = (grouped @ keys.mT).float() * width**-0.5 + bias
    return (scores.softmax(-1).to(values.dtype) @ values).reshape(batch, heads, 1, width)


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
