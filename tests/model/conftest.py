"""Small real things for the tests of the model: a tiny PAM, its tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.config import PamConfig, PerceiverConfig
from model.pam import Pam
from model.tokenizer import train_tokenizer

TEXTS = ["a red square on the left", "the blue star moves right", "A green ellipse. 红色的方块。"]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture(scope="session")
def tiny_config(tokenizer: Any) -> PamConfig:
    llm = {
        "vocab_size": 448,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return PamConfig(sam="nano", perceiver=PerceiverConfig(dim=64, mlp_dim=96, tokens=4), llm=llm, video_frames=4)


@pytest.fixture
def tiny_pam(tiny_config: PamConfig) -> Pam:
    torch.manual_seed(0)
    return Pam(tiny_config).eval()
