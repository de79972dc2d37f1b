"""The fast decoder says what Hugging Face `generate` says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.decode import FastDecoder, cache_length
from model.generate import GenerationConfig, Generator, eager_tokens
from model.pam import Batch, Pam
from model.templates import encode_prompt
from prompts.pam import user_text


def _sequences(pam: Pam, tokenizer: Any, tasks: list[Any]) -> Any:
    torch.manual_seed(5)
    embed, tokens = torch.randn(len(tasks), 1, 64, 8, 8), torch.randn(len(tasks), 1, 2, 64)
    ids = [encode_prompt(tokenizer, user_text(task)) for task in tasks]
    with torch.no_grad():
        return pam.assemble(Batch(False, embed, tokens, ids), left_pad=True)


def _sharpen(pam: Pam) -> Pam:
    """Random weights with spread-out logits, so that a greedy choice is never a near tie."""
    with torch.no_grad():
        for parameter in pam.llm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return pam


def test_greedy_tokens_equal_the_eager_path_with_and_without_padding(tiny_pam: Pam, tokenizer: Any) -> None:
    pam = _sharpen(tiny_pam)
    config = GenerationConfig(max_new_tokens=40)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for tasks in (["brief"], ["label", "detailed", "explain"]):
        sequences = _sequences(pam, tokenizer, tasks)
        eager = eager_tokens(pam.llm, sequences, config, end)
        fast = FastDecoder(pam.llm).generate(sequences.rows, sequences.mask, 40, end)
        assert fast == eager
        assert len({tuple(row) for row in fast}) == len(tasks)
        assert eager_tokens(pam.llm, sequences, config, end) == eager, "fusing the weights changed the model"


def test_a_row_stops_at_its_end_and_others_go_on(tiny_pam: Pam, tokenizer: Any) -> None:
    pam = _sharpen(tiny_pam)
    sequences = _sequences(pam, tokenizer, ["label", "detailed"])
    free = FastDecoder(pam.llm).generate(sequences.rows, sequences.mask, 30, end=-1)
    end = next(token for token in free[0][3:] if token not in free[1])
    stopped = FastDecoder(pam.llm).generate(sequences.rows, sequences.mask, 30, end=end)
    assert stopped[0] == free[0][: free[0].index(end)]
    assert stopped[1] == free[1]


@pytest.mark.parametrize("length", [253, 254, 255, 256, 1042])
@pytest.mark.parametrize("tokens", [1, 2, 3, 64])
def test_the_cache_has_room_for_the_answer_and_for_warming_up(length: int, tokens: int) -> None:
    assert cache_length(length, tokens) >= length + max(tokens, 3)
    assert cache_length(length, tokens) % 256 == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_stays_inside_the_cache(tiny_pam: Pam, tokenizer: Any) -> None:
    llm = _sharpen(tiny_pam).llm.cuda()
    rows, mask = torch.randn(1, 254, llm.config.hidden_size, device="cuda"), torch.ones(1, 254, device="cuda").long()
    plain = FastDecoder(llm, graph=False).generate(rows, mask, 2, end=-1)
    assert FastDecoder(llm, graph=True).generate(rows, mask, 2, end=-1) == plain
    torch.cuda.synchronize()


def test_answers_are_text_one_for_each_question(tiny_pam: Pam, tokenizer: Any) -> None:
    generator = Generator(tiny_pam, tokenizer, GenerationConfig(max_new_tokens=5))
    embed, tokens = torch.randn(2, 4, 64, 8, 8), torch.randn(2, 4, 2, 64)
    answers = generator(True, embed, tokens, [user_text("video"), user_text("stream", history="It stops.")])
    assert len(answers) == 2
    assert all("<|im_end|>" not in answer for answer in answers)
