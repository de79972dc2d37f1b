"""Tokens of the four image tasks asked one by one and in one combined request, and of each view, on the same regions.

    python -m benchmarks.teacher_tokens COCO.json IMAGES --regions 40

The requests are the real ones (views of real photos, prompts, what the source says); their tokens are counted by each
model's published rule. Answers are not bought: the usual shares of the prompts' limits stand in for them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from pipeline.plan import Asked, Local, plan
from schemas.arrow import to_table
from schemas.caption import Task
from schemas.keys import digest_value
from stages.distill import CaptionsConfig, build_distill
from stages.distill.config import IMAGE_TASKS
from stages.distill.units import CaptionUnit
from stages.masks import box_of, decode, from_polygons
from stages.teachers.config import TeacherConfig
from stages.teachers.pricing import price_of, request_tokens
from stages.teachers.protocol import TeacherRequest
from stages.views.images import IMAGE_VIEWS

MODELS = ("gpt-4o", "gpt-4.1-mini", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")


def units_of(annotations: Path, images: Path, count: int, task: Task) -> pa.Table:
    """The first regions with polygons of a COCO file."""
    raw = json.loads(annotations.read_text())
    media = {image["id"]: image for image in raw["images"]}
    names = {category["id"]: category["name"] for category in raw["categories"]}
    units = []
    for one in raw["annotations"]:
        image = media[one["image_id"]]
        path = images / image["file_name"]
        if not isinstance(one["segmentation"], list) or not path.exists() or len(units) == count:
            continue
        mask = from_polygons(one["segmentation"], image["height"], image["width"])
        key = digest_value([task, one["id"]])
        units.append(
            CaptionUnit(
                caption_key=key, region_key=key, media_key=digest_value(image["id"]), task=task, language="en",
                uri=str(path), kind="image", source="coco", label=names[one["category_id"]], width=image["width"],
                height=image["height"], mask=mask, box=box_of(decode(mask)), input_digest=key,
            )
        )  # fmt: skip
    return to_table(units, CaptionUnit)


def asked(config: TeacherConfig, captions: CaptionsConfig, options: Any) -> list[Asked]:
    found = []
    for task in get_args(Task):
        if task in IMAGE_TASKS:
            stage = build_distill(config, captions, task, "en", "unused")
            units = units_of(options.annotations, options.images, options.regions, task)
            found.append(Asked(stage, len(units), units))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--regions", type=int, default=40)
    options = parser.parse_args()
    for model in MODELS:
        config = TeacherConfig(backend="openai", model=model)
        sums = {}
        for name, combined in (("one by one", False), ("combined", True)):
            captions = CaptionsConfig(combined=combined)
            made = plan(config, asked(config, captions, options), Local(), sample=options.regions)
            tasks = [task for task in made.tasks if task.sampled]
            tokens_in = sum(task.prompt_tokens.likely / task.calls.likely for task in tasks)
            tokens_out = sum(task.completion_tokens.likely / task.calls.likely for task in tasks)
            sums[name] = tokens_in, tokens_out
            print(f"{model}: {name}: {tokens_in:.0f} tokens in, {tokens_out:.0f} out a region ({len(tasks)} requests)")
        print(f"{model}: combined / one by one, tokens in: {sums['combined'][0] / sums['one by one'][0]:.2f}")
    units = units_of(options.annotations, options.images, options.regions, "brief")
    for view in IMAGE_VIEWS:
        captions = CaptionsConfig(views={"brief": (view,)})
        stage = build_distill(TeacherConfig(backend="openai", model="m"), captions, "brief", "en", "unused")
        made = [r for r in stage.preview(from_units(units, stage)) if isinstance(r, TeacherRequest)]
        counts = [
            f"{model} {sum(request_tokens(r, price_of(model)) for r in made) / len(made):.0f}" for model in MODELS
        ]
        size = sum(len(p.data or b"") for r in made for m in r.messages for p in m.pictures) / len(made)
        print(f"view {view}: tokens in a request: {', '.join(counts)}; {size / 1000:.0f} kB of JPEG")


def from_units(units: pa.Table, stage: Any) -> list[CaptionUnit]:
    return [stage.unit.model_validate(row) for row in units.to_pylist()]


if __name__ == "__main__":
    main()
