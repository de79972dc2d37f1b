"""The language model behind vLLM says what it says here (needs an environment with vLLM; see `make test-vllm`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from model.checkpoint import released_state
from model.pam import Pam
from model.serve import export_llm

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_exported_language_model_is_the_pams_own(tiny_pam: Pam, tokenizer: object, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = export_llm(tiny_pam, tokenizer, tmp_path / "llm")
    alone = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    ours = released_state(tiny_pam)
    for name, value in alone.state_dict().items():
        if name != "lm_head.weight":
            torch.testing.assert_close(value, ours[name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_gives_the_same_greedy_tokens(tmp_path: Path) -> None:
    python = os.environ.get("PERCEIVE_VLLM_PYTHON")
    if not python:
        pytest.skip("PERCEIVE_VLLM_PYTHON names no Python with vLLM on CPU (make test-vllm)")
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    settings |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [python, str(Path(__file__).with_name("vllm_pam.py")), str(tmp_path / "llm")]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same tokens" in done.stdout
