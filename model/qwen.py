"""A language model of its own making, Qwen2 or Qwen2.5, to which a fresh perceiver and fresh projectors are put."""

from __future__ import annotations

from typing import Any

from model.checkpoint import CheckpointError
from model.config import PAM_SIZES, PamConfig
from model.pam import Pam
from model.tokenizer import load_tokenizer

_TURN = ("<|im_start|>", "<|im_end|>")


def load_llm(source: str, shape: PamConfig, tokenizer: Any = None) -> tuple[Pam, Any]:
    """A PAM around the language model of a folder or Hugging Face id, in float32, and its tokenizer.

    `shape` says all but the language model; what is not of the language model has random weights. Raises
    CheckpointError for what is no complete Qwen2, and for a tokenizer without Qwen2's chat marks.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"start.llm {source}: no language model can be read there: {error}") from error
    _check(source, config, tokenizer)
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype="float32", output_loading_info=True)
    llm, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise CheckpointError(f"start.llm {source}: weights are missing or mis-shaped: {', '.join(wrong)}")
    keys = {name: getattr(config, name) for name in PAM_SIZES["3b"] if name != "rope_theta"}
    keys["rope_theta"] = config.rope_parameters["rope_theta"]
    return Pam(shape.model_copy(update={"llm": keys}), llm), tokenizer


def _check(source: str, config: Any, tokenizer: Any) -> None:
    if config.model_type != "qwen2":
        raise CheckpointError(
            f"start.llm {source}: PAM's language model is a Qwen2 or Qwen2.5, not {config.model_type}"
        )
    if config.rope_parameters["rope_type"] != "default" or config.use_sliding_window:
        raise CheckpointError(f"start.llm {source}: scaled rotary positions and sliding windows are not supported")
    known = tokenizer.get_vocab()
    if any(mark not in known for mark in _TURN):
        raise CheckpointError(f"start.llm {source}: its tokenizer lacks {' or '.join(_TURN)}")
    size = max(known.values()) + 1
    if size > config.vocab_size:
        raise CheckpointError(f"start.llm {source}: {config.vocab_size} embeddings, but a tokenizer of {size} tokens")
