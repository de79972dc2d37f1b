"""What curation is worth: the same nano PAM on a corpus as the policy leaves it, and on the corpus with its defects.

    python -m benchmarks.curation_uplift --out OUT

A world of shapes is drawn with planted defects in annotations (shifted and empty boxes, wrong categories) and built; a
share of its captions is spoilt as careless teachers would; then the corpus is packed twice: by the default policy, and
by one without checks. Both train for the same steps with the same seed, and answer the same held-out practice scenes,
whose captions are measured and untouched.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import torch

from jobs import demo
from model.corpus import ShardCorpus
from model.demo import demo_config
from model.evaluate import EvalConfig, Report, answering, predict, score
from model.features import FeatureCache
from model.practice import PracticeConfig, write_practice
from model.train import train
from model.vision import load_sam
from pipeline.build import run_phases, session_of
from pipeline.config import load_config
from schemas.yaml import load_yaml

SHOWN = ("label_accuracy", "colour_words", "position_words", "cider", "rouge_l", "semantic_iou")
RAW = "name: raw\nabout: Keeps every caption, whatever is wrong with it.\nchecks: []\n"


def build(folder: Path, images: int, defects: float, spoilt: float, seed: int) -> dict[str, list[str]]:
    """Draws, builds and packs; the training shards of the `curated` and of the `raw` corpus."""
    config_path, _ = demo.draw(folder, images, 0, seed, defects)
    (folder / "raw.yaml").write_text(RAW, encoding="utf-8")
    settings = load_yaml(config_path.read_text(encoding="utf-8"))
    shards = {}
    for name, policy in (("curated", settings["policy"]), ("raw", "raw.yaml")):
        config_path.write_text(json.dumps(settings | {"policy": policy}), encoding="utf-8")
        config = load_config(config_path)
        with session_of(config) as session:
            if name == "curated":
                run_phases(session, ("ingest", "select", "refine", "chunk", "distill"))
                demo.plant(session, seed, spoilt, ("brief", "detailed"))
            run_phases(session, ("score", "decide", "pack"))
        pack = Path(config.run) / "packs" / str(session.result.pack_id)
        shards[name] = [str(pack / split) for split in ("train", "validation") if (pack / split).exists()]
    return shards


def learn(shards: list[str], held: ShardCorpus, out: Path, name: str, steps: int) -> Report:
    """Trains for `steps` on these shards and answers the held-out captions."""
    sam = load_sam("nano-words")
    config = demo_config(out / name, shards, 1.0).model_copy(update={"max_seconds": None, "max_steps": steps})
    result = train(config, sam, FeatureCache())
    asked = EvalConfig(tasks=["label", "brief"], batch=40)
    return score(predict(answering(result.checkpoint, sam, 60), held, asked), name, similarity=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--held-scenes", type=int, default=60)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--defects", type=float, default=0.3)
    parser.add_argument("--spoilt", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shards = build(args.out / "corpus", args.images, args.defects, args.spoilt, args.seed)
    held_shards = write_practice(args.out / "held", PracticeConfig(images=args.held_scenes, seed=args.seed + 1))
    held = ShardCorpus([str(path) for path in held_shards])
    reports = {name: learn(paths, held, args.out, name, args.steps) for name, paths in shards.items()}
    lines = [
        f"curation uplift, {date.today().isoformat()}, commit {args.commit or 'unknown'}, {args.threads} CPU threads",
        f"{args.images} photos, {args.defects:.0%} of annotations and {args.spoilt:.0%} of brief and detailed captions "
        f"spoilt; {args.steps} steps, seed {args.seed}; {args.held_scenes} held-out scenes",
        "",
        f"{'score':<16} {'curated':>8} {'raw':>8}",
    ]
    for score_name in SHOWN:
        values = [reports[name].value(score_name) for name in ("curated", "raw")]
        if None not in values:
            lines.append(f"{score_name:<16} {values[0]:>8.3f} {values[1]:>8.3f}")
    text = "\n".join(lines) + "\n"
    print(text)
    (args.out / "curation_uplift.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
