"""The perceiver and the projector against a slow, plain reference written from the description alone, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.config import PamConfig, PerceiverConfig
from model.pam import Pam
from model.perceiver import Perceiver, space_to_depth
from model.projector import Projector

State = dict[str, np.ndarray]


def _linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _attention(state: State, name: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    q, k, v = (_linear(state, f"{name}.{part}_proj", x) for part, x in (("q", q), ("k", k), ("v", v)))
    width = q.shape[-1] // heads
    out = np.zeros_like(q)
    for head in range(heads):
        cut = slice(head * width, (head + 1) * width)
        for row in range(len(q)):
            scores = k[:, cut] @ q[row, cut] / math.sqrt(width)
            weights = np.exp(scores - scores.max())
            out[row, cut] = (weights / weights.sum()) @ v[:, cut]
    return _linear(state, f"{name}.out_proj", out)


def _positions(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = []
    for i in range(height):
        for j in range(width):
            centre = 2 * np.array([(j + 0.5) / width, (i + 0.5) / height]) - 1
            angle = (centre @ matrix) * 2 * math.pi
            rows.append(np.concatenate([np.sin(angle), np.cos(angle)]))
    return np.stack(rows)


def reference(
    state: State, embed: np.ndarray, tokens: np.ndarray, heads: int, depth: int, half: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One example: embed (C, H, W), tokens (T, C) -> semantic (S, C), visual (N, 4C)."""
    dim, height, width = embed.shape
    keys = np.stack([embed[:, i, j] for i in range(height) for j in range(width)])
    queries = np.concatenate([tokens, state["sem_tokens.weight"]])
    pe = queries.copy()
    kpe = _positions(state["pe_layer.positional_encoding_gaussian_matrix"], height, width)
    for i in range(depth):
        name = f"layers.{i}"
        if i == 0:
            queries = _attention(state, f"{name}.self_attn", queries, queries, queries, heads)
        else:
            queries = queries + _attention(state, f"{name}.self_attn", queries + pe, queries + pe, queries, heads)
        queries = _norm(state, f"{name}.norm1", queries)
        cross = _attention(state, f"{name}.cross_attn_token_to_image", queries + pe, keys + kpe, keys, heads)
        queries = _norm(state, f"{name}.norm2", queries + cross)
        mlp = _linear(state, f"{name}.mlp.layers.1", np.maximum(_linear(state, f"{name}.mlp.layers.0", queries), 0))
        queries = _norm(state, f"{name}.norm3", queries + mlp)
        cross = _attention(state, f"{name}.cross_attn_image_to_token", keys + kpe, queries + pe, queries, heads)
        keys = _norm(state, f"{name}.norm4", keys + cross)
    final = _attention(state, "final_attn_token_to_image", queries + pe, keys + kpe, keys, heads)
    queries = _norm(state, "norm_final_attn", queries + final)
    # the raw memory of keys, read as if it were channels first, then regrouped step by step
    rate = 2 if half else 4
    memory = keys.reshape(-1).tolist()
    first = np.array(memory).reshape(width, height // rate, dim * rate)
    swapped = np.stack([first[:, i] for i in range(height // rate)])
    folded = np.array(swapped.reshape(-1).tolist()).reshape(height // rate, width // rate, dim * rate * rate)
    visual = np.stack([folded[i, j] for i in range(height // rate) for j in range(width // rate)])
    return queries[len(tokens) :], visual if half else _linear(state, "proj", visual)


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))(x)


def rows_reference(state: State, embed: np.ndarray, tokens: np.ndarray, heads: int) -> np.ndarray:
    """The rows (R, H) of one image (F = 1) or clip: embed (F, C, H, W), tokens (F, T, C)."""
    own = {name.removeprefix("perceiver."): value for name, value in state.items() if name.startswith("perceiver.")}
    rows: list[np.ndarray] = []
    for frame in range(len(embed)):
        semantic, visual = reference(own, embed[frame], tokens[frame], heads, 2, half=frame == 0)
        for part, name, newline in ((visual, "img", "image_newline"), (semantic, "semT", "semT_newline")):
            hidden = _gelu(_linear(state, f"projector.mm_projector_{name}.0", part))
            rows += [*_linear(state, f"projector.mm_projector_{name}.2", hidden), state[f"projector.{newline}"]]
        if len(embed) > 1:
            rows.append(state["projector.frame_newline"])
    return np.stack(rows)


@pytest.mark.parametrize("frames", [1, 3])
def test_an_image_and_a_clip_become_the_rows_of_the_plain_reference(frames: int) -> None:
    torch.manual_seed(2)
    llm = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    llm |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    pam = Pam(PamConfig(perceiver=PerceiverConfig(dim=16, heads=2, mlp_dim=24, tokens=3), llm=llm)).eval()
    embed, tokens = torch.randn(2, frames, 16, 8, 8), torch.randn(2, frames, 2, 16)
    with torch.no_grad():
        for parameter in pam.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        made = pam.visual_rows(embed, tokens, video=frames > 1)
        assert torch.equal(made, pam.visual_rows(embed, tokens, video=frames > 1)), "the same numbers every time"
    state = {name: value.double().numpy() for name, value in pam.state_dict().items()}
    for at in range(2):
        want = rows_reference(state, embed[at].double().numpy(), tokens[at].double().numpy(), 2)
        np.testing.assert_allclose(made[at].numpy(), want, atol=1e-5)


@pytest.mark.parametrize("half", [True, False])
def test_forward_equals_the_plain_reference(half: bool) -> None:
    torch.manual_seed(1)
    config = PerceiverConfig(dim=32, heads=4, mlp_dim=48, tokens=5)
    perceiver = Perceiver(config)
    with torch.no_grad():
        for parameter in perceiver.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        embed, tokens = torch.randn(2, 32, 8, 8), torch.randn(2, 2, 32)
        semantic, visual = perceiver(embed, tokens, half=half)
    state = {name: value.double().numpy() for name, value in perceiver.state_dict().items()}
    for at in range(2):
        want = reference(state, embed[at].double().numpy(), tokens[at].double().numpy(), 4, 2, half)
        np.testing.assert_allclose(semantic[at].numpy(), want[0], atol=1e-5)
        np.testing.assert_allclose(visual[at].numpy(), want[1], atol=1e-5)


def test_the_fold_reads_memory_as_it_lies_and_not_the_transposed_grid() -> None:
    keys = torch.arange(4 * 4 * 3, dtype=torch.float32).reshape(1, 16, 3)
    folded = space_to_depth(keys, 4, 4, 2)
    # the first token: the 2x2 cell at the top left, its rows one after the other
    assert folded[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    # the second is the cell BELOW it, where a "correct" row-by-row fold would have the cell to the right
    assert folded[0, 1].tolist() == [24, 25, 26, 27, 28, 29, 36, 37, 38, 39, 40, 41]
    with pytest.raises(ValueError, match="cannot be folded"):
        space_to_depth(torch.zeros(1, 25, 3), 5, 5, 2)


def test_projector_orders_visual_newline_semantic_newline() -> None:
    torch.manual_seed(0)
    projector = Projector(dim=8, hidden=12)
    semantic, visual = torch.randn(1, 3, 8), torch.randn(1, 5, 32)
    image, frame = projector(semantic, visual, video=False), projector(semantic, visual, video=True)
    assert image.shape == (1, 10, 12)
    assert frame.shape == (1, 11, 12)
    torch.testing.assert_close(image[0, :5], projector.mm_projector_img(visual)[0])
    torch.testing.assert_close(image[0, 5], projector.image_newline)
    torch.testing.assert_close(image[0, 6:9], projector.mm_projector_semT(semantic)[0])
    torch.testing.assert_close(image[0, 9], projector.semT_newline)
    torch.testing.assert_close(frame[0, 10], projector.frame_newline)


def test_full_size_has_the_published_parameters_and_token_counts() -> None:
    with torch.device("meta"):
        perceiver, projector = Perceiver(PerceiverConfig()), Projector(256, 2048)
        half = projector(*perceiver(torch.zeros(1, 256, 64, 64), torch.zeros(1, 2, 256), half=True), video=False)
        first = projector(*perceiver(torch.zeros(1, 256, 64, 64), torch.zeros(1, 2, 256), half=True), video=True)
        rest = projector(*perceiver(torch.zeros(15, 256, 64, 64), torch.zeros(15, 2, 256), half=False), video=True)
    assert half.shape[1] == 1042
    assert first.shape[1] + 15 * rest.shape[1] == 5168
    assert round(sum(p.numel() for p in perceiver.parameters()) / 1e6, 2) == 7.49
    assert round(sum(p.numel() for p in projector.mm_projector_img.parameters()) / 1e6, 2) == 6.30
    assert round(sum(p.numel() for p in projector.mm_projector_semT.parameters()) / 1e6, 2) == 4.72
