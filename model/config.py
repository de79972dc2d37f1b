"""The shape of a PAM: which SAM 2, how wide the perceiver, which language model."""

from __future__ import annotations

from typing import Any, Literal

from schemas.base import Record


class PerceiverConfig(Record):
    """The Semantic Perceiver (PAM, sec. 3): `dim` is SAM 2's decoder width, `tokens` the learned semantic queries."""

    dim: int = 256
    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    tokens: int = 16


class PamConfig(Record):
    """Everything needed to build an untrained PAM; stored beside its weights as `pam.json`.

    `sam` names SAM 2: `nano` (in the repository), a Hugging Face id such as `facebook/sam2.1-hiera-large`, or a file.
    `llm` holds the keys of `transformers.Qwen2Config`. `video_frames` is how many frames of a clip the language model
    sees (PAM: 16, the first at half resolution, the others at a quarter); `stream_frames` how many a clip of a stream
    has (PAM: 32). `first_half` shows an image, and the first frame of a clip, at half resolution (PAM); off, at a
    quarter like the other frames: a quarter of the visual tokens, for nano models.
    """

    sam: str = "facebook/sam2.1-hiera-large"
    perceiver: PerceiverConfig = PerceiverConfig()
    llm: dict[str, Any] = {}
    video_frames: int = 16
    stream_frames: int = 32
    first_half: bool = True
    max_length: int = 12288

    @property
    def hidden(self) -> int:
        """Width of the language model."""
        return int(self.llm["hidden_size"])


_QWEN25_COMMON = {
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}

PAM_SIZES: dict[str, dict[str, Any]] = {
    "1.5b": _QWEN25_COMMON
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "3b": _QWEN25_COMMON
    | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    | {"num_attention_heads": 16, "num_key_value_heads": 2},
}
"""Language models of PAM-1.5B and PAM-3B: the public Qwen2.5 configurations."""


def pam_config(size: Literal["1.5b", "3b"]) -> PamConfig:
    """The configuration of a released PAM size."""
    return PamConfig(llm=PAM_SIZES[size])
