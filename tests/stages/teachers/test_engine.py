"""vLLM for real, on CPU, with a tiny random model: the engine inside a process.

Needs an environment of its own in which vLLM runs on CPU and this package is importable; `PERCEIVE_VLLM_PYTHON` names
its Python. docs/guides/teachers.md says how the servers are started in earnest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.teachers.chat import TeacherSetupError
from stages.teachers.config import TeacherConfig
from stages.teachers.engine import EngineTeacher

REPOSITORY = Path(__file__).resolve().parents[3]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip

ASK = """
import asyncio, json, sys
import numpy as np
from stages.distill.answers import BriefAnswer
from stages.teachers.config import EngineConfig, LimitsConfig, TeacherConfig
from stages.teachers.engine import EngineTeacher
from stages.teachers.protocol import Decoding, Message, TeacherRequest
from stages.views.config import ViewConfig
from stages.views.encode import to_picture

async def main():
    engine = EngineConfig(max_model_len=4096, dtype="bfloat16", options={"enforce_eager": True, "max_num_seqs": 16,
                          "limit_mm_per_prompt": {"image": 2}})
    config = TeacherConfig(backend="vllm", model=sys.argv[1], engine=engine, limits=LimitsConfig(timeout_s=300))
    teacher = EngineTeacher(config)
    await teacher.start()
    def request(i):
        picture = to_picture(np.full((112, 112, 3), 8 * i, np.uint8), ViewConfig(), encoded=False)
        turns = (Message("system", "Describe."), Message("user", f"Thing {i}.", (picture,)))
        return TeacherRequest(model=config.identity, messages=turns, answer=BriefAnswer, max_tokens=1024,
                              decoding=Decoding(temperature=1.0, seed=i))
    replies = await asyncio.gather(*(teacher.ask(request(i)) for i in range(16)))
    await teacher.stop()
    print("REPLIES " + json.dumps([r.model_dump(mode="json") for r in replies]))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(scope="session")
def vllm_python() -> str:
    python = os.environ.get("PERCEIVE_VLLM_PYTHON")
    if not python:
        pytest.skip("PERCEIVE_VLLM_PYTHON names no Python with vLLM on CPU")
    return python


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_engine_answers_in_the_schema_with_its_usage(vllm_python: str, tmp_path: Path) -> None:
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    made = [vllm_python, str(REPOSITORY / "tests" / "tiny_vlm.py"), str(tmp_path / "model")]
    subprocess.run(made, check=True, env=environment, timeout=300)
    script = tmp_path / "ask.py"
    script.write_text(ASK)
    command = [vllm_python, str(script), str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("REPLIES "))
    replies = json.loads(line.removeprefix("REPLIES "))
    assert {reply["outcome"] for reply in replies} <= {"answer", "truncated"}
    assert sum(reply["outcome"] == "answer" for reply in replies) >= 12
    assert all(reply["usage"]["prompt_tokens"] > 16 for reply in replies)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(TeacherSetupError, match=r"perceive-engine\[vllm\]"):
        EngineTeacher(TeacherConfig(backend="vllm", model="m"))
