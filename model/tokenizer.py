"""Tokenizers: Qwen2's for real models, a byte-level BPE trained on the corpus for the nano one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.templates import PARAPHRASES, SYSTEM
from prompts.pam import PROMPTS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Any:
    """A `PreTrainedTokenizerFast` over bytes, so that no text (Chinese, emoji) is out of vocabulary.

    The prompts are part of the corpus: each then costs few tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fixed = [SYSTEM, "system\nuser\nassistant\n"]
    fixed += [text for tasks in PROMPTS.values() for text in tasks.values()]
    fixed += [text for ways in PARAPHRASES.values() for text in ways]
    bpe.train_from_iterator([*fixed * 50, *texts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer saved in a checkpoint folder, or of a Hugging Face id. Raises OSError when there is none."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))
