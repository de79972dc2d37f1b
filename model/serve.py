"""PAM behind vLLM: SAM 2 and the perceiver run here, their rows go to vLLM's engine as prompt embeddings.

The visual rows depend on the prompt, so nothing of them can be cached as tokens; what vLLM adds is its scheduler: many
requests of many callers in one batch. `model.decode` is faster for one caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.generate import GenerationConfig
from model.pam import Batch, Pam
from model.templates import encode_prompt


def export_llm(pam: Pam, tokenizer: Any, folder: Path) -> Path:
    """Writes the language model alone as a Hugging Face Qwen2 folder, which vLLM loads. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pam.llm.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    return folder


class VllmGenerator:
    """Answers questions about taps through a vLLM engine; takes the place of `model.generate.Generator`.

    `engine` is a `vllm.LLM` of an exported folder with `enable_prompt_embeds=True`:

    engine = vllm.LLM(str(export_llm(pam, tokenizer, folder)), enable_prompt_embeds=True)
    described = PAM(pam, sam, tokenizer)
    described.answer = VllmGenerator(pam, tokenizer, engine)
    """

    def __init__(self, pam: Pam, tokenizer: Any, engine: Any, config: GenerationConfig | None = None) -> None:
        self.pam, self.tokenizer, self.engine = pam, tokenizer, engine
        self.config = config or GenerationConfig()
        self.end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")

    @torch.no_grad()
    def __call__(self, video: bool, embed: torch.Tensor, tokens: torch.Tensor, users: Sequence[str]) -> list[str]:
        """One answer for each user turn (see `prompts.pam.user_text`) and its taps (B, F, ...)."""
        ids = [encode_prompt(self.tokenizer, user) for user in users]
        batch = Batch(video, embed.to(self.pam.device), tokens.to(self.pam.device), ids)
        found = self.tokens(self.pam.assemble(batch))
        return [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in found]

    def tokens(self, sequences: Any) -> list[list[int]]:
        """The answers' token ids, without the end of turn; `sequences` are padded on the right or not at all."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=self.config.temperature, max_tokens=self.config.max_new_tokens, stop_token_ids=[self.end]
        )
        rows = [row[mask.bool()].cpu() for row, mask in zip(sequences.rows, sequences.mask, strict=True)]
        made = self.engine.generate([{"prompt_embeds": row} for row in rows], sampling, use_tqdm=False)
        answers = [list(output.outputs[0].token_ids) for output in made]
        return [ids[: ids.index(self.end)] if self.end in ids else ids for ids in answers]
