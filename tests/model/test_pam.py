"""Assembly of the sequence, the loss, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, load, load_released, released_state, save
from model.config import PamConfig, PerceiverConfig
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


@pytest.fixture
def released(tokenizer: Any, tmp_path: Path) -> Path:
    """A folder laid out exactly as a released PAM, at its full perceiver size and a small language model."""
    torch.manual_seed(3)
    llm = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm |= {"num_key_value_heads": 1, "vocab_size": 420, "tie_word_embeddings": True, "rope_theta": 1e6}
    pam = Pam(PamConfig(perceiver=PerceiverConfig(), llm=llm))
    state = released_state(pam)
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


RELEASED_SHAPES = {
    "model.vision_resampler.pe_layer.positional_encoding_gaussian_matrix": (2, 128),
    "model.vision_resampler.sem_tokens.weight": (16, 256),
    "model.vision_resampler.proj.weight": (1024, 4096),
    "model.vision_resampler.layers.1.self_attn.out_proj.weight": (256, 256),
    "model.vision_resampler.layers.0.cross_attn_token_to_image.q_proj.weight": (128, 256),
    "model.vision_resampler.layers.0.cross_attn_image_to_token.out_proj.weight": (256, 128),
    "model.vision_resampler.layers.1.mlp.layers.0.weight": (2048, 256),
    "model.vision_resampler.layers.1.mlp.layers.1.bias": (256,),
    "model.vision_resampler.layers.1.norm4.weight": (256,),
    "model.vision_resampler.final_attn_token_to_image.v_proj.bias": (128,),
    "model.vision_resampler.norm_final_attn.bias": (256,),
    "model.mm_projector_img.0.weight": (32, 1024),
    "model.mm_projector_img.2.weight": (32, 32),
    "model.mm_projector_semT.0.weight": (32, 256),
    "model.image_newline": (32,),
    "model.semT_newline": (32,),
    "model.frame_newline": (32,),
    "model.embed_tokens.weight": (420, 32),
    "model.layers.0.self_attn.q_proj.bias": (32,),
    "model.norm.weight": (32,),
}


def test_released_layout_loads_with_nothing_missing(released: Path) -> None:
    pam, _, report = load_released(released, dtype=torch.float32)
    assert report.clean
    assert sorted(report.tolerated) == ["lm_head.weight", "model.vision_tower.sam2_model_predictor.no_mem_embed"]
    state = released_state(pam)
    assert {name: tuple(state[name].shape) for name in RELEASED_SHAPES} == RELEASED_SHAPES
    stored = load_file(str(released / "model-00001-of-00002.safetensors"))
    for name, value in stored.items():
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


def test_a_folder_that_is_no_pam_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_released(tmp_path)
    with pytest.raises(CheckpointError, match=r"pam\.json"):
        load(tmp_path)
