"""Writes photos of shapes as a native COCO instances folder, with the truth beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from schemas.base import Box
from stages.masks import encode
from stages.shapes.config import DefectKind, ShapesConfig
from stages.shapes.palette import KINDS
from stages.shapes.scene import Instance, Scene, draw_scene

JPEG_QUALITY = 92
CATEGORY_IDS = {kind: index + 1 for index, kind in enumerate(KINDS)}
_Json = dict[str, Any]


@dataclass(frozen=True)
class ShapesFolder:
    """What was written: the annotation files, the folder that their file names are relative to, and the truth."""

    annotations: tuple[Path, ...]
    media: Path
    truth: Path


def write_images(folder: Path, config: ShapesConfig) -> ShapesFolder:
    """Writes `images/*.jpg`, `instances.json` (COCO) and `truth.json` into `folder`; one config, the same bytes.

    `truth.json` maps each annotation id (a string) to the exact mask (COCO RLE), exact box (xyxy), kind, colour,
    texture, size and position words, occlusion and area share; `defects` maps planted ones to their kind.
    """
    media = folder / "images"
    media.mkdir(parents=True, exist_ok=True)
    coco: _Json = {
        "info": {"description": "Drawn shapes with exact truth", "seed": config.seed},
        "licenses": [{"id": 1, "name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [{"id": i, "name": kind, "supercategory": "shape"} for kind, i in CATEGORY_IDS.items()],
        "images": [],
        "annotations": [],
    }
    truth: _Json = {"config": config.model_dump(mode="json"), "annotations": {}, "defects": {}}
    for index in range(config.images):
        rng = np.random.default_rng([config.seed, 0, index])
        scene = draw_scene(rng, config.size, config.objects, config.kinds, config.textures)
        name = f"{index:06d}.jpg"
        _write_jpeg(media / name, scene.image)
        coco["images"].append(_image(index + 1, name, scene))
        for number, instance in enumerate(scene.instances):
            annotation_id = 100 * (index + 1) + number
            coco["annotations"].append(_annotation(annotation_id, index + 1, instance, config, rng))
            truth["annotations"][str(annotation_id)] = _truth(instance)
    _plant(coco, truth, media, config)
    _write_json(folder / "instances.json", coco)
    _write_json(folder / "truth.json", truth)
    return ShapesFolder((folder / "instances.json",), media, folder / "truth.json")


def jitter_box(box: Box, fraction: float, rng: np.random.Generator, width: int, height: int) -> Box:
    """The box with each edge moved by up to `fraction` of its side, within the image and at least 2 px wide."""
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) * fraction, (y1 - y0) * fraction
    left, top, right, bottom = rng.uniform(-1, 1, 4) * (dx, dy, dx, dy)
    x0, x1 = sorted((float(np.clip(x0 + left, 0, width)), float(np.clip(x1 + right, 0, width))))
    y0, y1 = sorted((float(np.clip(y0 + top, 0, height)), float(np.clip(y1 + bottom, 0, height))))
    return min(x0, width - 2.0), min(y0, height - 2.0), max(x1, x0 + 2), max(y1, y0 + 2)


def _write_jpeg(path: Path, image: np.ndarray[Any, Any]) -> None:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise OSError(f"could not encode {path.name} as JPEG")
    path.write_bytes(data.tobytes())


def _write_json(path: Path, value: _Json) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _image(image_id: int, name: str, scene: Scene) -> _Json:
    height, width = scene.image.shape[:2]
    return {"id": image_id, "file_name": name, "width": width, "height": height, "license": 1}


def _annotation(
    annotation_id: int, image_id: int, instance: Instance, config: ShapesConfig, rng: np.random.Generator
) -> _Json:
    height, width = instance.mask.shape
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORY_IDS[instance.look.kind],
        "bbox": _xywh(jitter_box(instance.box, config.jitter, rng, width, height)),
        "area": int(instance.mask.sum()),
        "segmentation": _segmentation(instance, config),
        "iscrowd": 0,
    }


def _segmentation(instance: Instance, config: ShapesConfig) -> Any:
    if config.masks == "rle":
        return encode(instance.mask).model_dump(mode="json")
    if config.masks == "polygon":
        contours, _ = cv2.findContours(instance.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        return [(c.reshape(-1) + 0.5).astype(float).tolist() for c in contours if len(c) >= 3]
    return []


def _truth(instance: Instance) -> _Json:
    return {
        "mask": encode(instance.mask).model_dump(mode="json"),
        "box": list(instance.box),
        "kind": instance.look.kind,
        "colour": instance.look.colour,
        "texture": instance.look.texture,
        "size": instance.size,
        "position": instance.position,
        "occlusion": round(instance.occlusion, 4),
        "area_share": round(instance.area_share, 6),
    }


def _xywh(box: Box) -> list[float]:
    x0, y0, x1, y1 = (round(edge, 2) for edge in box)
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]


def _plant(coco: _Json, truth: _Json, media: Path, config: ShapesConfig) -> None:
    """Turns a share of the annotations into defects, each kind in turn; additions carry ids of their own."""
    annotations = coco["annotations"]
    count = round(config.defects * len(annotations))
    if not count or not config.defect_kinds:
        return
    rng = np.random.default_rng([config.seed, 2])
    for turn, index in enumerate(sorted(rng.permutation(len(annotations))[:count].tolist())):
        kind = config.defect_kinds[turn % len(config.defect_kinds)]
        annotation_id = _plant_one(kind, annotations[index], coco, media, rng)
        truth["defects"][str(annotation_id)] = kind


def _plant_one(kind: DefectKind, annotation: _Json, coco: _Json, media: Path, rng: np.random.Generator) -> int:
    """Plants one defect; returns the id of the annotation that carries it."""
    image = next(image for image in coco["images"] if image["id"] == annotation["image_id"])
    width, height = image["width"], image["height"]
    x, y, w, h = annotation["bbox"]
    if kind in ("missing_file", "unreadable_file"):
        return _plant_file(kind, annotation, coco, media)
    if kind == "background_box":
        box = _empty_box(coco, image, rng)
        extra = {**annotation, "id": 1_000_000 + annotation["id"], "bbox": box, "segmentation": []}
        coco["annotations"].append({**extra, "area": box[2] * box[3]})
        return int(extra["id"])
    if kind == "wrong_category":
        others = [c for c in CATEGORY_IDS.values() if c != annotation["category_id"]]
        annotation["category_id"] = others[int(rng.integers(len(others)))]
    elif kind == "unknown_category":
        annotation["category_id"] = 9_999
    else:
        moved = {
            "shifted_box": [(x + width / 2) % max(width - w, 1), (y + height / 2) % max(height - h, 1), w, h],
            "zero_area_box": [x, y, 0.0, h],
            "outside_box": [x + 2 * width, y + 2 * height, w, h],
            "nan_box": [float("nan"), y, w, h],
        }
        annotation["bbox"] = [round(value, 2) for value in moved[kind]]
        annotation["segmentation"] = []
    return int(annotation["id"])


def _plant_file(kind: DefectKind, annotation: _Json, coco: _Json, media: Path) -> int:
    """An image entry of its own, whose file is absent or cut off, with one annotation on it."""
    image = next(image for image in coco["images"] if image["id"] == annotation["image_id"])
    number = 1_000_000 + annotation["id"]
    name = f"{kind}_{annotation['id']}.jpg"
    if kind == "unreadable_file":
        data = (media / image["file_name"]).read_bytes()
        (media / name).write_bytes(data[: 200 + annotation["id"] % 50])
    coco["images"].append({**image, "id": number, "file_name": name})
    coco["annotations"].append({**annotation, "id": number, "image_id": number})
    return int(number)


def _empty_box(coco: _Json, image: _Json, rng: np.random.Generator) -> list[float]:
    """The xywh box, of an eighth of the image's sides, that overlaps the image's annotated boxes least."""
    w, h = image["width"] / 8, image["height"] / 8
    boxes = np.array([a["bbox"] for a in coco["annotations"] if a["image_id"] == image["id"]])
    tries = rng.uniform(0, 1, (200, 2)) * (image["width"] - w, image["height"] - h)
    overlap_x = np.minimum(tries[:, :1] + w, boxes[:, 0] + boxes[:, 2]) - np.maximum(tries[:, :1], boxes[:, 0])
    overlap_y = np.minimum(tries[:, 1:] + h, boxes[:, 1] + boxes[:, 3]) - np.maximum(tries[:, 1:], boxes[:, 1])
    shared = (overlap_x.clip(0) * overlap_y.clip(0)).sum(1)
    best = tries[int(np.nan_to_num(shared).argmin())]
    return [round(float(v), 2) for v in (best[0], best[1], w, h)]
