"""The ledger at millions of replies: writing by group commit, opening, lookups, budgets, clearing; and their memory.

    python -m benchmarks.ledger [--replies 2000000] [--lookups 20000] [--folder DIR]

Each part runs in a process of its own, so that its memory is its own. Replies are small captions with usage and tags,
about 600 bytes on disk, handed to the ledger as fast as it takes them; every tenth request was asked twice (an invalid
reply before its answer). Memory is private memory (pages of the mapped indexes are the system's to drop), and the peak
of all resident pages.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from schemas.caption import Usage
from schemas.keys import digest_value
from stages.teachers import cache
from stages.teachers.ledger import Ledger
from stages.teachers.segments import Entry

IN_FLIGHT = 4096


def entry(number: int, answer: bool) -> Entry:
    text = f'{{"caption": "A white coffee cup, number {number}, stands on a wooden table beside an open laptop."}}'
    return Entry(
        request=digest_value(number),
        outcome="answer" if answer else "invalid",
        text=text,
        finish_reason="stop",
        usage=Usage(prompt_tokens=900, completion_tokens=24, cost_usd=0.0015),
        teacher="openai",
        model="gpt-4o-mini",
        created_s=1.76e9 + number,
        seconds=1.25,
        tags={"task": "brief", "language": "en", "kind": "brief/en", "media": digest_value([number // 7]).hex()},
    )


def private_mb() -> float:
    """Private resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("RssAnon:")[1].split()[0]) / 1e3


def write(folder: str, replies: int, _: int) -> dict[str, float]:
    """Appends all replies, `IN_FLIGHT` of them not yet on disk at any time."""
    clock, cpu = time.perf_counter(), time.process_time()
    ledger = Ledger(folder)
    ledger.open()
    waiting: deque[Future[None]] = deque()
    for number in range(replies):
        request, again = divmod(number, 11)
        request = request * 10 + max(0, again - 1)  # of eleven replies the first two are of one request
        waiting.append(ledger.append(entry(request, answer=again > 0)))
        if len(waiting) == IN_FLIGHT:
            waiting.popleft().result()
    while waiting:
        waiting.popleft().result()
    ledger.close()
    seconds = time.perf_counter() - clock
    size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"s": seconds, "cpu_s": time.process_time() - cpu, "replies_per_s": replies / seconds, "gb": size / 1e9}


def read(folder: str, replies: int, lookups: int) -> dict[str, float]:
    """Opens the ledger and asks for requests that it has and for others, in random order."""
    before, clock = private_mb(), time.perf_counter()
    ledger = Ledger(folder)
    ledger.open()
    opened = time.perf_counter() - clock
    draw, requests = random.Random(0), replies // 11 * 10
    asked = [digest_value(draw.randrange(requests)) for _ in range(lookups)]
    strange = [digest_value([number]) for number in range(lookups)]
    result = {"open_s": opened}
    for name, digests in (("hits", asked), ("misses", strange)):
        clock = time.perf_counter()
        found = [ledger.lookup(one) for one in digests]
        result[f"{name}_per_s"] = lookups / (time.perf_counter() - clock)
        if any((one is None or one.outcome != "answer") == (name == "hits") for one in found):
            raise AssertionError(f"{name}: the ledger answered wrongly")
        del found
    result["private_mb_more"] = private_mb() - before
    ledger.close()
    return result


def spent(folder: str, replies: int, _: int) -> dict[str, float]:
    """What all replies cost, from the indexes: what a budget asks."""
    clock = time.perf_counter()
    usage = cache.spent(folder)
    assert usage.prompt_tokens == 900 * replies
    return {"s": time.perf_counter() - clock}


def stats(folder: str, replies: int, _: int) -> dict[str, float]:
    """`perceive cache stats`, of totals."""
    clock, cpu = time.perf_counter(), time.process_time()
    assert cache.stats(folder).replies == replies
    return {"s": time.perf_counter() - clock, "cpu_s": time.process_time() - cpu}


def cost(folder: str, replies: int, _: int) -> dict[str, float]:
    """What a dataset card says of money: with the totals of the segments, and where they were never kept."""
    result = {}
    for name in ("kept", "counted"):
        clock, cpu = time.perf_counter(), time.process_time()
        bought = cache.by_model(folder)["openai", "gpt-4o-mini"]
        assert (bought.replies, bought.usage.prompt_tokens) == (replies, 900 * replies)
        result |= {f"{name}_s": time.perf_counter() - clock, f"{name}_cpu_s": time.process_time() - cpu}
        for path in Path(folder).glob("*.sum"):
            path.unlink()
    return result


def gc(folder: str, replies: int, _: int) -> dict[str, float]:
    """`perceive cache gc`: one reply a request is kept."""
    clock = time.perf_counter()
    before, after = cache.gc(folder)
    answered = replies // 11 * 10 + max(0, replies % 11 - 1)
    assert (before, after) == (replies, answered), (before, after)
    return {"s": time.perf_counter() - clock, "kept": after}


PARTS: dict[str, Callable[[str, int, int], dict[str, float]]] = {
    "write": write, "read": read, "spent": spent, "stats": stats, "cost": cost, "gc": gc,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=2_000_000)
    parser.add_argument("--lookups", type=int, default=20_000)
    parser.add_argument("--folder")
    parser.add_argument("--part", choices=sorted(PARTS))
    asked = parser.parse_args()
    if asked.part:
        measured = PARTS[asked.part](asked.folder, asked.replies, asked.lookups)
        measured["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({name: round(value, 3) for name, value in measured.items()}))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for part in (*PARTS, "read"):  # read once more what gc has left
            numbers = ["--replies", str(asked.replies), "--lookups", str(asked.lookups)]
            command = [sys.executable, "-m", "benchmarks.ledger", "--part", part, "--folder", folder, *numbers]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{part:6} {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
