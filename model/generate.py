"""From taps and questions to answers: the fast greedy decoder, or Hugging Face `generate` for sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pydantic import Field

from model.decode import FastDecoder
from model.pam import Batch, Pam, Sequences
from model.templates import encode_prompt
from schemas.base import Record


class GenerationConfig(Record):
    """How answers are decoded. PAM's notebooks sample at temperature 0.1 with up to 512 tokens; 0 is greedy.

    `fast` uses the static-cache decoder for greedy answers; off, everything goes through Hugging Face `generate`.
    """

    max_new_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    fast: bool = True


class Answerer(Protocol):
    """What answers questions about taps: `Generator` here, or vLLM (`model.serve`)."""

    def __call__(self, video: bool, embed: torch.Tensor, tokens: torch.Tensor, users: Sequence[str], /) -> list[str]:
        """One answer for each user turn (see `prompts.pam.user_text`) and its taps (B, F, ...)."""
        ...


class Generator:
    """Answers questions about taps with one PAM."""

    def __init__(self, pam: Pam, tokenizer: Any, config: GenerationConfig | None = None) -> None:
        self.pam, self.tokenizer = pam, tokenizer
        self.config = config or GenerationConfig()
        self._decoder: FastDecoder | None = None
        self.end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")

    @torch.no_grad()
    def __call__(self, video: bool, embed: torch.Tensor, tokens: torch.Tensor, users: Sequence[str]) -> list[str]:
        """One answer for each user turn (see `prompts.pam.user_text`) and its taps (B, F, ...)."""
        return self.after(video, embed, tokens, [encode_prompt(self.tokenizer, user) for user in users])

    @torch.no_grad()
    def after(self, video: bool, embed: torch.Tensor, tokens: torch.Tensor, ids: Sequence[Sequence[int]]) -> list[str]:
        """The same for prompts that are token ids already."""
        batch = Batch(video, embed.to(self.pam.device), tokens.to(self.pam.device), ids)
        answers = self.tokens(self.pam.assemble(batch, left_pad=True))
        return [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def tokens(self, sequences: Sequences) -> list[list[int]]:
        """The answers' token ids, without the end of turn."""
        if self.config.fast and self.config.temperature == 0:
            if self._decoder is None:
                self._decoder = FastDecoder(self.pam.llm)
            return self._decoder.generate(sequences.rows, sequences.mask, self.config.max_new_tokens, self.end)
        return eager_tokens(self.pam.llm, sequences, self.config, self.end)


@torch.no_grad()
def eager_tokens(llm: Any, sequences: Sequences, config: GenerationConfig, end: int) -> list[list[int]]:
    """The same by Hugging Face `generate`: the reference for the fast decoder, and the way to sample."""
    out = llm.generate(
        inputs_embeds=sequences.rows,
        attention_mask=sequences.mask,
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        temperature=config.temperature or None,
        top_p=None,
        top_k=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    return [row[: row.index(end)] if end in row else row for row in out.tolist()]
