"""Run by `test_serve.py` where vLLM is: the same greedy tokens from vLLM as from the fast decoder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def main(folder: Path) -> None:
    from vllm import LLM

    from model.config import PamConfig, PerceiverConfig
    from model.decode import FastDecoder
    from model.generate import GenerationConfig
    from model.pam import Batch, Pam
    from model.serve import VllmGenerator, export_llm
    from model.templates import encode_prompt
    from model.tokenizer import train_tokenizer
    from prompts.pam import user_text

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red square on the left"], vocab_size=400)
    llm = {"vocab_size": 448, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    llm |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    pam = Pam(PamConfig(perceiver=PerceiverConfig(dim=64, mlp_dim=64, tokens=4), llm=llm, video_frames=2)).eval()
    with torch.no_grad():
        for parameter in pam.llm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = [encode_prompt(tokenizer, user_text(task)) for task in ("label", "detailed", "brief")]
    batch = Batch(False, torch.randn(3, 1, 64, 8, 8), torch.randn(3, 1, 2, 64), ids)
    exported = export_llm(pam, tokenizer, folder)
    engine = LLM(
        str(exported), enable_prompt_embeds=True, dtype="float32", enforce_eager=True, max_model_len=256,
        max_num_seqs=4, gpu_memory_utilization=0.05,
    )  # fmt: skip
    config = GenerationConfig(max_new_tokens=24)
    with torch.no_grad():
        served = VllmGenerator(pam, tokenizer, engine, config).tokens(pam.assemble(batch))
        padded = pam.assemble(batch, left_pad=True)
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        own = FastDecoder(pam.llm).generate(padded.rows, padded.mask, 24, end)
    print("served", served, "own", own)
    assert served == own
    print("the same tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
