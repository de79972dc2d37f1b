"""How fast a PAM describes one target, against today's way (Hugging Face eager `generate`), in the same run.

    python benchmarks/pam.py --size 3b --out OUT            # on a GPU, random weights: speed does not depend on them
    python benchmarks/pam.py --size tiny --tokens 8         # a trial anywhere

An image item is a 1024x1024 picture and a box, to 64 greedy tokens: SAM 2.1-large, perceiver, prompt, answer.
Figures are medians after warm-up; peak memory is `torch.cuda.max_memory_allocated` of one item after loading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import PamConfig, PerceiverConfig, pam_config
from model.decode import FastDecoder
from model.generate import GenerationConfig, eager_tokens
from model.pam import Batch, Pam, Sequences, build_llm, cast
from model.templates import encode_prompt
from model.tokenizer import train_tokenizer
from model.vision import FrozenSam, Prompt
from prompts.pam import user_text

NEVER = -1
"""An end-of-turn id that no token has: every answer runs to its full length."""
_TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True,
}  # fmt: skip


def build(size: str, device: torch.device) -> tuple[Pam, FrozenSam]:
    """Random weights of the released shapes, made on the device; the language model in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tiny = PamConfig(sam="nano", perceiver=PerceiverConfig(dim=64, mlp_dim=64, tokens=4), llm=_TINY)
    config = tiny if size == "tiny" else pam_config(size)  # type: ignore[arg-type]
    with device:
        llm = build_llm(config, dtype)
        pam = Pam(config, llm)
    cast(pam, dtype)
    if size == "tiny":
        from stages.sam2.nano import build_nano

        sam: Any = build_nano()
    else:
        from stages.sam2.load import build_public

        sam = build_public("configs/sam2.1/sam2.1_hiera_l.yaml")
    return pam.to(device).eval(), FrozenSam(sam.to(device), half_encoder=device.type == "cuda")


class Bench:
    """One PAM on one device, its items, and a stopwatch."""

    def __init__(self, size: str, device: torch.device) -> None:
        self.device = device
        self.pam, self.sam = build(size, device)
        self.tokenizer = train_tokenizer([], 512)
        self.ids = encode_prompt(self.tokenizer, user_text("detailed"))
        self.picture = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)

    def seconds(self, what: Callable[[], Any], repeats: int) -> float:
        """Median time of a call after one to warm up."""
        what()
        times = []
        for _ in range(repeats):
            self.wait()
            began = time.perf_counter()
            what()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def prompt_rows(self, batch: int) -> Sequences:
        """Embedded prompts of one picture with `batch` boxes."""
        features = self.sam.encode(self.sam.preprocess([self.picture]))
        prompts = [Prompt(box=(100.0 + at, 120.0, 600.0, 700.0)) for at in range(batch)]
        taps = self.sam.prompt(features, [0] * batch, prompts, [(1024, 1024)] * batch)
        made = Batch(False, taps.embed[:, None], taps.tokens[:, None], [self.ids] * batch)
        return self.pam.assemble(made, left_pad=True)

    def eager(self, rows: Sequences, tokens: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=tokens)
        return eager_tokens(self.pam.llm, rows, config, NEVER)


def measure(bench: Bench, tokens: int, long: int, batches: list[int], compiled: bool) -> dict[str, Any]:
    """All figures of one size."""
    out: dict[str, Any] = {}
    one = bench.prompt_rows(1)
    out["prompt_rows"] = one.rows.shape[1]
    out["sam_and_perceiver_s"] = bench.seconds(lambda: bench.prompt_rows(1), 5)
    first, item, stream = (bench.seconds(lambda n=n: bench.eager(one, n), 2) for n in (1, tokens, long))
    out["eager"] = _figures(out, first, item, stream, tokens, long)
    ways = {"fast": FastDecoder(bench.pam.llm)}
    if compiled:
        ways["fast_compiled"] = FastDecoder(bench.pam.llm, compiled=True)
    for name, decoder in ways.items():
        began = time.perf_counter()
        decoder.generate(one.rows, one.mask, 2, NEVER)
        bench.wait()
        prepare = time.perf_counter() - began
        times = []
        for n in (1, tokens, long):
            # one cache length for all, so that nothing is captured in the middle
            times.append(bench.seconds(lambda n=n, d=decoder: d.generate(one.rows, one.mask, n, NEVER), 5))
        out[name] = _figures(out, *times, tokens, long) | {"prepare_s": round(prepare, 2)}
        out[name]["item_speedup_over_eager"] = round(out["eager"]["item_s"] / out[name]["item_s"], 2)
        if name == "fast":
            out["peak_memory_gb"] = _peak(bench, decoder, tokens)
            out["batches"] = [_throughput(bench, decoder, size, tokens) for size in batches]
    return out


def _figures(out: dict[str, Any], first: float, item: float, stream: float, tokens: int, long: int) -> dict[str, Any]:
    look = out["sam_and_perceiver_s"]
    return {
        "item_s": round(look + item, 4),
        "first_token_s": round(look + first, 4),
        "tokens_per_second_batch_1": round((long - 1) / (stream - first), 1),
        "tokens_of_item": tokens,
    }


def _peak(bench: Bench, decoder: FastDecoder, tokens: int) -> float | None:
    if bench.device.type != "cuda":
        return None
    decoder._runs.clear()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    rows = bench.prompt_rows(1)
    decoder.generate(rows.rows, rows.mask, tokens, NEVER)
    return round(torch.cuda.max_memory_allocated() / 1e9, 2)


def _throughput(bench: Bench, decoder: FastDecoder, size: int, tokens: int) -> dict[str, Any]:
    rows = bench.prompt_rows(size)
    decode = bench.seconds(lambda: decoder.generate(rows.rows, rows.mask, tokens, NEVER), 2)
    look = bench.seconds(lambda: bench.prompt_rows(size), 2)
    per_second = size / (decode + look)
    return {"batch": size, "items_per_second": round(per_second, 2), "tokens_per_second": round(per_second * tokens, 1)}


def agrees(device: torch.device) -> bool:
    """Whether fast and eager give the same greedy tokens in float32 on a small configuration on this device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    pam = Pam(PamConfig(perceiver=PerceiverConfig(dim=64, mlp_dim=64, tokens=4), llm=_TINY)).to(device).eval()
    with torch.no_grad():
        for parameter in pam.llm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    mask = torch.ones(3, 40, dtype=torch.long, device=device)
    mask[0, :7] = 0
    rows = Sequences(torch.randn(3, 40, 64, device=device), mask, mask)
    eager = eager_tokens(pam.llm, rows, GenerationConfig(max_new_tokens=48), NEVER)
    return FastDecoder(pam.llm).generate(rows.rows, rows.mask, 48, NEVER) == eager


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "1.5b", "3b"], default="3b")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--long", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    head = {"benchmark": "pam", "size": args.size, "date": date.today().isoformat(), "commit": args.commit}
    head |= {"hardware": hardware, "torch": torch.__version__, "fp32_tokens_equal_eager": agrees(device)}
    bench = Bench(args.size, device)
    result = head | measure(bench, args.tokens, args.long, args.batches, args.compiled)
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"pam_{args.size}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
