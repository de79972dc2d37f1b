"""Asks a vLLM engine in this process, then kills it: a script for the Python of an environment that has vLLM.

`python vllm_engine.py MODEL` prints `REPLIES` with the replies to sixteen requests, `SECONDS`, `REFUSED` with the reply
to a request that is too long, and then kills the engine's own process in the midst of 64 more and prints `DEATH`
with the type of what each of them raised and the seconds that took.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from stages.distill.answers import BriefAnswer
from stages.teachers.config import EngineConfig, LimitsConfig, TeacherConfig
from stages.teachers.engine import EngineTeacher
from stages.teachers.protocol import Decoding, Message, Reply, TeacherRequest
from stages.views.config import ViewConfig
from stages.views.encode import to_picture

OPTIONS = {"enforce_eager": True, "max_num_seqs": 16, "limit_mm_per_prompt": {"image": 2}}


def request(model: str, number: int, words: str = "Describe.", max_tokens: int = 1024) -> TeacherRequest:
    picture = to_picture(np.full((112, 112, 3), 8 * (number % 32), np.uint8), ViewConfig(), encoded=False)
    turns = (Message("system", words), Message("user", f"Thing {number}.", (picture,)))
    decoding = Decoding(temperature=1.0, seed=number)
    return TeacherRequest(model=model, messages=turns, answer=BriefAnswer, max_tokens=max_tokens, decoding=decoding)


def children() -> dict[int, str]:
    """Process ids below this one, with their names."""
    found, parents = {}, {os.getpid()}
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) in parents:
            parents.add(int(entry.name))
            found[int(entry.name)] = name
    return found


async def death(teacher: EngineTeacher, model: str) -> dict[str, object]:
    # four times what runs at once: however fast the engine is, some still wait when it is killed
    asking = [asyncio.ensure_future(teacher.ask(request(model, number, max_tokens=3000))) for number in range(64)]
    await asyncio.sleep(0.5)
    began = time.monotonic()
    for child, name in children().items():
        if "Engine" in name:
            os.kill(child, signal.SIGKILL)
    raised = await asyncio.gather(*asking, return_exceptions=True)
    names = [r.outcome if isinstance(r, Reply) else type(r).__name__ for r in raised]
    return {"raised": names, "seconds": time.monotonic() - began}


async def main(model: str) -> None:
    engine = EngineConfig(max_model_len=4096, dtype="bfloat16", options=OPTIONS)
    config = TeacherConfig(backend="vllm", model=model, engine=engine, limits=LimitsConfig(timeout_s=300))
    began = time.monotonic()
    teacher = EngineTeacher(config)
    await teacher.start()
    started = time.monotonic()
    replies = await asyncio.gather(*(teacher.ask(request(model, number)) for number in range(16)))
    answered = time.monotonic()
    print("REPLIES " + json.dumps([reply.model_dump(mode="json") for reply in replies]), flush=True)
    print("SECONDS " + json.dumps({"start": started - began, "replies": answered - started}), flush=True)
    refused = await teacher.ask(request(model, 1, words="Describe. " * 8000))
    print("REFUSED " + refused.model_dump_json(), flush=True)
    print("DEATH " + json.dumps(await death(teacher, model)), flush=True)
    await teacher.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
