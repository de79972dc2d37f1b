"""Assembly of the sequence, the loss, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, load, load_released, load_whole, released_state, save
from model.pam import Batch, Pam
from model.templates import IGNORE, IMAGE_PLACEHOLDER, encode_example, encode_prompt
from prompts.pam import user_text


def _batch(tokenizer: Any, answers: list[str], frames: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(len(answers) + frames)
    embed = torch.randn(len(answers), frames, 64, 8, 8, generator=generator)
    tokens = torch.randn(len(answers), frames, 2, 64, generator=generator)
    encoded = [encode_example(tokenizer, user_text("brief"), answer) for answer in answers]
    return Batch(frames > 1, embed, tokens, [e.ids for e in encoded], [e.labels for e in encoded])


def test_visual_rows_replace_the_placeholder_and_carry_no_loss(tiny_pam: Pam, tokenizer: Any) -> None:
    batch = _batch(tokenizer, ["a red square", "a blue star on the left"])
    out = tiny_pam.assemble(batch)
    visual = tiny_pam.visual_rows(batch.embed, batch.tokens, video=False)
    assert visual.shape == (2, 16 + 1 + 4 + 1, 48)
    spot = batch.ids[0].index(IMAGE_PLACEHOLDER)
    torch.testing.assert_close(out.rows[0, spot : spot + 22], visual[0])
    assert (out.labels[0, spot : spot + 22] == IGNORE).all()
    assert out.mask.sum(1).tolist() == [len(ids) - 1 + 22 for ids in batch.ids]
    assert (out.labels[0][out.mask[0] == 0] == IGNORE).all()


def test_a_clip_shows_its_first_frame_at_half_and_the_others_at_a_quarter(tiny_pam: Pam, tokenizer: Any) -> None:
    batch = _batch(tokenizer, ["a red square"], frames=4)
    rows = tiny_pam.visual_rows(batch.embed, batch.tokens, video=True)
    assert rows.shape[1] == (16 + 4 + 3) + 3 * (4 + 4 + 3)
    other = tiny_pam.visual_rows(batch.embed.flip(1), batch.tokens.flip(1), video=True)
    torch.testing.assert_close(rows[:, 23:34], other[:, 34:45])


def test_the_loss_is_the_plain_cross_entropy_of_the_full_logits(tiny_pam: Pam, tokenizer: Any) -> None:
    batch = _batch(tokenizer, ["a red square", "a blue star on the left"])
    loss, count = tiny_pam(batch)
    seq = tiny_pam.assemble(batch)
    logits = tiny_pam.llm(inputs_embeds=seq.rows, attention_mask=seq.mask).logits
    want = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]),
        seq.labels[:, 1:].reshape(-1),
        ignore_index=IGNORE,
        reduction="sum",
    )
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-4)
    assert count == (seq.labels[:, 1:] != IGNORE).sum()


def test_an_example_without_an_image_is_refused(tiny_pam: Pam, tokenizer: Any) -> None:
    batch = _batch(tokenizer, ["a red square"])
    with pytest.raises(ValueError, match="exactly one <image>"):
        tiny_pam.assemble(Batch(False, batch.embed, batch.tokens, [[1, 2, 3]]))


def test_left_padding_aligns_the_ends(tiny_pam: Pam, tokenizer: Any) -> None:
    ids = [encode_prompt(tokenizer, user_text(task)) for task in ("label", "detailed")]
    batch = _batch(tokenizer, ["x", "y"])
    seq = tiny_pam.assemble(Batch(False, batch.embed, batch.tokens, ids), left_pad=True)
    assert seq.mask[:, -1].tolist() == [1, 1]
    assert seq.mask[:, 0].tolist() == [0, 1]


def test_save_and_load_give_the_same_model(tiny_pam: Pam, tokenizer: Any, tmp_path: Path) -> None:
    save(tiny_pam, tmp_path / "ckpt", tokenizer)
    again, their_tokenizer = load(tmp_path / "ckpt")
    batch = _batch(tokenizer, ["a red square"])
    torch.testing.assert_close(again(batch)[0], tiny_pam(batch)[0], rtol=0, atol=0)
    assert their_tokenizer.encode("a red square 方块") == tokenizer.encode("a red square 方块")
    weights = load_file(str(tmp_path / "ckpt" / "model.safetensors"))
    weights.pop("model.image_newline")
    save_file(weights, str(tmp_path / "ckpt" / "model.safetensors"))
    with pytest.raises(CheckpointError, match=r"model\.image_newline"):
        load(tmp_path / "ckpt")


HIDDEN, VOCABULARY = 32, 420


def _linear(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def _released_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released PAM without its language model, written from the published table."""
    at = "model.vision_resampler."
    found: dict[str, tuple[int, ...]] = {
        f"{at}pe_layer.positional_encoding_gaussian_matrix": (2, 128),
        f"{at}sem_tokens.weight": (16, 256),
    }
    found |= _linear(f"{at}proj", 1024, 4096)
    narrow = [f"{at}final_attn_token_to_image"]
    norms = [f"{at}norm_final_attn"]
    for layer in (f"{at}layers.0", f"{at}layers.1"):
        for part in ("q", "k", "v", "out"):
            found |= _linear(f"{layer}.self_attn.{part}_proj", 256, 256)
        narrow += [f"{layer}.cross_attn_token_to_image", f"{layer}.cross_attn_image_to_token"]
        found |= _linear(f"{layer}.mlp.layers.0", 2048, 256) | _linear(f"{layer}.mlp.layers.1", 256, 2048)
        norms += [f"{layer}.norm{number}" for number in (1, 2, 3, 4)]
    for attention in narrow:
        for part in ("q", "k", "v"):
            found |= _linear(f"{attention}.{part}_proj", 128, 256)
        found |= _linear(f"{attention}.out_proj", 256, 128)
    for norm in norms:
        found |= {f"{norm}.weight": (256,), f"{norm}.bias": (256,)}
    for name, width in (("img", 1024), ("semT", 256)):
        found |= _linear(f"model.mm_projector_{name}.0", HIDDEN, width)
        found |= _linear(f"model.mm_projector_{name}.2", HIDDEN, HIDDEN)
    return found | {f"model.{name}_newline": (HIDDEN,) for name in ("image", "semT", "frame")}


@pytest.fixture
def released(tokenizer: Any, tmp_path: Path) -> Path:
    """A folder laid out exactly as a released PAM, at its full perceiver size and a small language model."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(3)
    llm = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm |= {"num_key_value_heads": 1, "vocab_size": VOCABULARY, "tie_word_embeddings": True, "rope_theta": 1e6}
    state = {name: torch.randn(shape) * 0.05 for name, shape in _released_layout().items()}
    state |= dict(AutoModelForCausalLM.from_config(Qwen2Config(**llm)).state_dict())
    state.pop("lm_head.weight")
    state["model.vision_tower.sam2_model_predictor.no_mem_embed"] = torch.zeros(1, 1, 256)
    folder = tmp_path / "released"
    folder.mkdir()
    names = sorted(state)
    save_file({n: state[n].contiguous() for n in names[:30]}, str(folder / "model-00001-of-00002.safetensors"))
    save_file({n: state[n].contiguous() for n in names[30:]}, str(folder / "model-00002-of-00002.safetensors"))
    config = llm | {"model_type": "llava_qwen", "vocab_size": 416, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(str(folder))
    return folder


def test_released_layout_loads_with_nothing_missing(released: Path) -> None:
    pam, _, report = load_released(released, dtype=torch.float32)
    assert report.clean
    assert sorted(report.tolerated) == ["lm_head.weight", "model.vision_tower.sam2_model_predictor.no_mem_embed"]
    state = released_state(pam)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    ours = {name: shape for name, shape in shapes.items() if not name.startswith(("model.layers.", "model.norm"))}
    assert ours == _released_layout() | {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for file in released.glob("*.safetensors"):
        for name, value in load_file(str(file)).items():
            if name in state:
                torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert pam.llm.config.rope_parameters["rope_type"] == "default"
    assert pam.llm.lm_head.weight.data_ptr() == pam.llm.model.embed_tokens.weight.data_ptr()


def test_the_report_names_missing_unexpected_and_mis_shaped_keys(released: Path) -> None:
    file = released / "model-00002-of-00002.safetensors"
    state = load_file(str(file))
    state["model.image_newline2"] = state.pop("model.vision_resampler.norm_final_attn.bias")
    name = "model.vision_resampler.sem_tokens.weight"
    state[name] = state[name][:8].contiguous()
    save_file(state, str(file))
    _, _, report = load_released(released)
    assert report.missing == ["model.vision_resampler.norm_final_attn.bias"]
    assert report.unexpected == ["model.image_newline2"]
    assert report.mis_shaped == ["model.vision_resampler.sem_tokens.weight [8, 256] instead of [16, 256]"]
    assert not report.clean
    assert "1 mis-shaped" in str(report)


def test_what_a_released_pam_holds_besides_does_not_keep_it_from_use(
    released: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = released / "model-00002-of-00002.safetensors"
    state = load_file(str(file))
    save_file(state | {"model.extra.weight": torch.zeros(2)}, str(file))
    load_whole(released)
    assert "model.extra.weight" in caplog.text
    state.pop("model.vision_resampler.norm_final_attn.bias")
    save_file(state, str(file))
    with pytest.raises(CheckpointError, match="not a complete PAM"):
        load_whole(released)


def test_a_folder_that_is_no_pam_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_released(tmp_path)
    with pytest.raises(CheckpointError, match=r"pam\.json"):
        load(tmp_path)
