"""Scoring throughput: rules 1 to 8 and 17 over synthetic captions, near copies, and a plain Python loop of the rules.

python -m benchmarks.score [--rows 2100000] [--near 200000] [--datatrove PYTHON]

`--datatrove` names the Python of an environment that has datatrove[processing] and spacy: its filters of quality and
repetition are run there over English captions of the same kind, beside rules 1 to 8 on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import re
import resource
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from schemas.arrow import arrow_schema, conform
from stages.base import Stage, checked
from stages.score.duplicates import DuplicatesConfig, corpus_scores
from stages.score.lexicon import load_lexicon
from stages.score.mask import MaskStage
from stages.score.text import TextStage

BATCH = 50_000
SAMPLE = 3_000
DATATROVE_SAMPLE = 5_000
WORDS = (
    "red blue green small large round square old wooden metal dog cat person car cup table chair tree wall grass left",
    "right upper lower stands lies moves holds looks turns runs beside under near with and of the a on its surface",
    "shadow light dark smooth striped handle wheel window door leaf stone water sky hand face jacket hat street",
)
CHARACTERS = (
    "红蓝绿小大圆方狗猫人车杯桌椅树墙草左右上下站躺动拿看转跑旁边下面和的在其表面边缘影子光滑条纹把手轮窗门叶石水天空"
)


def keys(rows: int, seed: int) -> pl.Series:
    data = np.random.default_rng(seed).bytes(16 * rows)
    return pl.Series(pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(data)]))


def captions(rows: int, seed: int = 0) -> pl.DataFrame:
    """Captions of 6 to 45 random words, a fifth of them Chinese."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, 46, rows)
    chinese = rng.random(rows) < 0.2
    words, characters = np.asarray(" ".join(WORDS).split()), np.asarray(list(CHARACTERS))
    draws = rng.integers(0, 1 << 30, int(lengths.sum()))
    texts, start = [], 0
    for length, other in zip(lengths.tolist(), chinese.tolist(), strict=True):
        part = draws[start : start + length]
        start += length
        if other:
            texts.append("".join(characters[part % len(characters)]) + "。")
        else:
            texts.append(" ".join(words[part % len(words)]) + ".")
    return pl.DataFrame(
        {
            "caption_key": keys(rows, seed + 1),
            "region_key": keys(rows, seed + 2),
            "input_digest": keys(rows, seed + 3),
            "language": pl.Series(np.where(chinese, "zh", "en")),
            "task": pl.Series(rng.choice(["brief", "detailed", "stream"], rows)),
            "text": texts,
            "area_share": rng.random(rows),
            "predicted_iou": rng.random(rows),
            "box": pl.Series([[0.0, 0.0, 50.0, 40.0]] * rows, dtype=pl.Array(pl.Float64, 4)),
        }
    )


def run(stage: Stage, frame: pl.DataFrame) -> float:
    """Seconds of `stage` over all rows, in batches, rows checked and digested as in a run."""
    stage.open()
    units = conform(frame.to_arrow(), arrow_schema(stage.unit))
    start = time.perf_counter()
    for offset in range(0, len(units), BATCH):
        for _ in checked(stage, units.slice(offset, BATCH)):
            pass
    return time.perf_counter() - start


def plain(texts: list[str]) -> float:
    """Seconds a row of rules 2 to 8 as a loop over English texts, with compiled expressions."""
    names = ("marks", "mark_nouns", "refusals", "hedges", "openers", "dangling", "pii", "unsafe", "identities")
    patterns = [re.compile(load_lexicon(name).regex("en") or "$^") for name in names]
    start = time.perf_counter()
    for text in texts:
        for pattern in patterns:
            sum(1 for _ in pattern.finditer(text))
        words = re.findall(r"\w+", text.lower())
        Counter(zip(words, words[1:], words[2:], words[3:], strict=False)).most_common(1)
        len(set(itertools.pairwise(words)))
        sentences = [part.strip() for part in re.split(r"[.!?]", text.lower()) if part.strip()]
        len(sentences) - len(set(sentences))
    return (time.perf_counter() - start) / len(texts)


def beside_datatrove(python: str, count: int) -> None:
    """Prints what datatrove's filters take for `count` English captions, and the rules for the same."""
    frame = captions(round(1.4 * count), seed=9).filter(pl.col("language") == "en").head(count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.txt"
        path.write_text("\n".join(frame["text"]) + "\n", encoding="utf-8")
        script = Path(__file__).with_name("score_datatrove.py")
        done = subprocess.run([python, str(script), str(path)], check=True, capture_output=True, text=True)
    said = orjson.loads(done.stdout)
    theirs = sum(said["seconds"].values())
    start = time.process_time()
    run(TextStage(), frame)
    ours = time.process_time() - start
    shares = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in said["seconds"].items())
    print(f"datatrove {said['version']}, {count:,} English captions: {theirs:.1f} s of processor time ({shares})")
    print(f"rules 1-8 and 20 by words on these: {ours:.1f} s of processor time; ratio {theirs / ours:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_100_000)
    parser.add_argument("--near", type=int, default=200_000, help="captions for the near-copy search")
    parser.add_argument("--datatrove", metavar="PYTHON", help="the Python of an environment with datatrove")
    arguments = parser.parse_args()
    if arguments.datatrove:
        beside_datatrove(arguments.datatrove, min(arguments.rows, DATATROVE_SAMPLE))
    frame = captions(arguments.rows)
    text = run(TextStage(), frame)
    mask = run(MaskStage(), frame)
    total = text + mask
    print(f"{arguments.rows:,} captions: rules 1-8 and 20 by words {text:.1f} s, rule 17 {mask:.1f} s")
    print(f"{arguments.rows / total:,.0f} captions/s; 2.1 million in {2.1e6 * total / arguments.rows:.0f} s")
    english = frame.filter(pl.col("language") == "en")["text"].head(SAMPLE).to_list()
    loop = plain(english)
    print(f"plain Python loop of rules 2-8: {1 / loop:,.0f} captions/s; ratio {loop * arguments.rows / text:.1f}")
    corpus = frame.head(arguments.near).rename({"input_digest": "digest"}).with_columns(status=pl.lit("ok"))
    start = time.perf_counter()
    corpus_scores(corpus, DuplicatesConfig())
    near = time.perf_counter() - start
    print(f"near copies among {len(corpus):,}: {near:.1f} s, {near / len(corpus) * 1e6:.0f} us a caption")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
