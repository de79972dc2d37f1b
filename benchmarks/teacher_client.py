"""The online teacher against a bare asyncio `openai` loop, on a local scripted server of fixed latency.

    python benchmarks/teacher_client.py --pairs 7 --requests 1500 --in-flight 256 --latency 0.2

Both send the same requests (two small JPEGs and a prompt, a JSON schema) and validate every answer. Pairs are
interleaved and each is a ratio of its own, so that a machine that changes speed does not decide the result. Rendering a
request from an image and a mask is measured apart. `--memory 20000` sends that many requests and prints the resident
memory on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openai import AsyncOpenAI

from prompts import for_task
from stages.distill.answers import BriefAnswer
from stages.shapes.scene import draw_scene
from stages.teachers.chat import chat_body
from stages.teachers.config import LimitsConfig, TeacherConfig
from stages.teachers.online import OnlineTeacher, open_client
from stages.teachers.protocol import Decoding, Message, Picture, TeacherRequest
from stages.views.config import ViewConfig
from stages.views.encode import to_picture
from stages.views.images import render

SERVER = Path(__file__).resolve().parents[1] / "tests" / "teacher_server.py"


@contextmanager
def serving(latency_s: float) -> Iterator[str]:
    """A scripted server in a process of its own; yields its address."""
    command = [sys.executable, str(SERVER), str(latency_s)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.communicate()


def pictures() -> tuple[Picture, ...]:
    scene = draw_scene(np.random.default_rng(0), (640, 480))
    instance = scene.instances[0]
    config = ViewConfig()
    drawn = render("crop_mask", scene.image, instance.mask, instance.box, config)
    return tuple(to_picture(picture, config, encoded=True) for picture in drawn)


def request(number: int, shown: tuple[Picture, ...]) -> TeacherRequest:
    turns = (Message("system", "Describe the target."), Message("user", f"Target {number}: one sentence.", shown))
    return TeacherRequest(model="m", messages=turns, answer=BriefAnswer, decoding=Decoding(), max_tokens=128)


@dataclass(frozen=True)
class Rate:
    """Requests a second by the clock, and by the CPU time of this process (which other work cannot slow down)."""

    wall: float
    cpu: float


class Meter:
    """Times a number of requests."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, requests: int) -> Rate:
        return Rate(requests / (time.perf_counter() - self._wall), requests / (time.process_time() - self._cpu))


async def bare(config: TeacherConfig, asked: list[TeacherRequest], in_flight: int) -> Rate:
    """The rate of a plain loop over `AsyncOpenAI` with a semaphore."""
    client: AsyncOpenAI = open_client(config, None)
    slots = asyncio.Semaphore(in_flight)
    bodies = [chat_body(one, config) for one in asked]

    async def one(body: dict[str, object]) -> None:
        async with slots:
            done = await client.chat.completions.create(**body)  # type: ignore[call-overload]
            BriefAnswer.model_validate_json(done.choices[0].message.content)

    meter = Meter()
    await asyncio.gather(*(one(body) for body in bodies))
    rate = meter.rate(len(asked))
    await client.close()
    return rate


async def ours(config: TeacherConfig, asked: list[TeacherRequest]) -> Rate:
    """The rate of the online teacher; bodies are built, digests taken and answers judged inside."""
    teacher = OnlineTeacher(config)
    await teacher.start()
    meter = Meter()
    replies = await asyncio.gather(*(teacher.ask(one) for one in asked))
    rate = meter.rate(len(asked))
    assert all(reply.outcome == "answer" for reply in replies)
    await teacher.stop()
    return rate


def rendering(seconds: float = 3.0) -> float:
    """Requests a second that one thread renders: views, JPEGs, prompt and digest, from decoded pixels."""
    scene = draw_scene(np.random.default_rng(0), (640, 480))
    instance = scene.instances[0]
    config, prompt = ViewConfig(), for_task("brief", "en")
    context = {"label": "thing", "definitions": [], "phrases": [], "views": ["crop_mask"], "mark": 1}
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        drawn = render("crop_mask", scene.image, instance.mask, instance.box, config)
        shown = tuple(to_picture(picture, config, encoded=True) for picture in drawn)
        turns = prompt.render(context)
        messages = (Message("system", turns.system), Message("user", turns.user, shown))
        one = TeacherRequest(model="m", messages=messages, answer=BriefAnswer, decoding=Decoding(), max_tokens=128)
        assert one.digest
        count += 1
    return count / (time.perf_counter() - began)


async def memory(config: TeacherConfig, total: int, shown: tuple[Picture, ...]) -> list[float]:
    """Resident MiB after each tenth of `total` requests."""
    teacher = OnlineTeacher(config)
    await teacher.start()
    levels = []
    for part in range(10):
        asked = (request(part * total + number, shown) for number in range(total // 10))
        await asyncio.gather(*(teacher.ask(one) for one in asked))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        levels.append(pages * resource.getpagesize() / 2**20)
    await teacher.stop()
    return levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--memory", type=int, default=0, metavar="REQUESTS")
    options = parser.parse_args()
    shown = pictures()
    with serving(options.latency) as url:
        limits = LimitsConfig(in_flight=options.in_flight)
        config = TeacherConfig(backend="openai", model="m", base_url=url, limits=limits)
        asked = [request(number, shown) for number in range(options.requests)]
        asyncio.run(ours(config, asked[:256]))
        pairs, by_cpu = [], []
        for number in range(options.pairs):
            runs = {"bare": lambda: bare(config, asked, options.in_flight), "ours": lambda: ours(config, asked)}
            order = ["bare", "ours"] if number % 2 == 0 else ["ours", "bare"]
            rates = {name: asyncio.run(runs[name]()) for name in order}
            pairs.append(rates["ours"].wall / rates["bare"].wall)
            by_cpu.append(rates["ours"].cpu / rates["bare"].cpu)
            told = ", ".join(f"{name} {rate.wall:.0f}/s ({rate.cpu:.0f} a CPU second)" for name, rate in rates.items())
            print(f"pair {number + 1}: {told}, {pairs[-1]:.3f} ({by_cpu[-1]:.3f})", flush=True)
        result = {
            "median_ratio": round(statistics.median(pairs), 3), "pairs": [round(pair, 3) for pair in pairs],
            "median_ratio_by_cpu_time": round(statistics.median(by_cpu), 3),
            "in_flight": options.in_flight, "latency_s": options.latency,
            "render_requests_per_s": round(rendering(), 1),
        }  # fmt: skip
        if options.memory:
            result["memory_mib"] = [round(level) for level in asyncio.run(memory(config, options.memory, shown))]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
