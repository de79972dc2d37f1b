"""An environment with vLLM on CPU, and a tiny model for it; tests that need it skip where it is absent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python of an environment that `tools/vllm_env.sh` has made."""
    python = os.environ.get("PERCEIVE_VLLM_PYTHON")
    if not python:
        pytest.skip("PERCEIVE_VLLM_PYTHON names no Python with vLLM on CPU (make test-vllm)")
    return Path(python)


@pytest.fixture(scope="session")
def vllm_environment(vllm_python: Path) -> dict[str, str]:
    """What vLLM on a small CPU machine, and this package beside it, need in the environment."""
    return {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_worker_niceness": "0",  # an engine that starts in a worker takes minutes where others go first
    }


@pytest.fixture(scope="session")
def tiny_model(vllm_python: Path, vllm_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Qwen2-VL of random weights."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    command = [str(vllm_python), str(REPOSITORY / "tests" / "tiny_vlm.py"), str(folder)]
    subprocess.run(command, check=True, env=vllm_environment, timeout=300, capture_output=True)
    return folder
