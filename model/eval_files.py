"""Published evaluation files of region captioning and recognition as references.

Read by their contents, not by their names:

- COCO-style objects (`images`, `annotations`, `categories`): the RefCOCOg validation file of GPT4RoI, Osprey and
  GLaMM (the expression stands at the image entry), Visual Genome's `test_caption.json` of GRiT and GLaMM (`caption` at
  the annotation), DLC-Bench's annotations, LVIS and PACO as they are (categories, LVIS with synonyms);
- Osprey's lists for LVIS and PACO (`lvis_val_1k_category.json`, `paco_val_1k_category.json`): an image with parallel
  `categories` and `annotations`;
- Visual Genome's `region_descriptions.json`: images with `regions` of `phrase`, x, y, width, height.

Entries of one image with the same box are one target with several references. What has a caption is asked as `brief`,
what has only a category as `label`, unless a task is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from model.corpus import CorpusError, Example
from schemas.base import Box
from schemas.caption import Task
from schemas.geometry import Rle
from stages import masks
from stages.media.images import load_image


@dataclass(frozen=True)
class Target:
    """One target: its image's file name, its id in the file, what marks it, its references, its category."""

    file: str
    name: str
    box: Box | None
    segmentation: Any
    texts: tuple[str, ...]
    category: str
    synonyms: tuple[str, ...] = ()


class AnnotationCorpus:
    """The targets of one or more files; images below `media`. Raises CorpusError naming file and record."""

    def __init__(self, files: Sequence[Path], media: Path, task: Task | None = None) -> None:
        self._media = media.resolve()
        self._targets: list[Target] = []
        rows: list[tuple[Any, ...]] = []
        for file in files:
            for target in _merged(_targets(file)):
                asked = task or ("brief" if target.texts else "label")
                self._targets.append(target)
                length = len((target.texts or (target.category,))[0])
                rows.append((target.file, False, asked, "en", file.stem, length, target.name, target.category))
        if not rows:
            raise CorpusError(f"{', '.join(map(str, files))}: no target with a box or mask and a reference in it")
        names = ["media", "video", "task", "language", "source", "length", "region", "label"]
        self.index = pl.DataFrame(rows, schema=names, orient="row")

    def load(self, number: int) -> Example:
        """The target of row `number`. Raises CorpusError when its image is not there or its mask is none."""
        target, task = self._targets[number], self.index["task"][number]
        path = self._find(target.file)
        height, width = load_image(str(path)).shape[:2]
        mask = _mask(target, height, width)
        # a category is a reference for its name, not for a caption
        texts = target.texts or ((target.category, *target.synonyms) if task == "label" else ("",))
        return Example(
            key=f"{target.file}-{target.name}",
            video=False,
            count=1,
            size=(height, width),
            read=lambda indices: [load_image(str(path)) for _ in indices],
            box=target.box or (masks.box_of(mask) if mask is not None else None),
            points=[],
            mask=mask,
            task=task,
            language="en",
            text=texts[0],
            label=target.category or None,
            others=tuple(texts[1:]),
        )

    def _find(self, name: str) -> Path:
        """The image, at its own path or by its bare name (RefCOCOg prefixes it). Raises CorpusError."""
        bare = PurePosixPath(name).name
        for candidate in (name, bare, bare.rsplit("_", 1)[-1]):
            path = (self._media / candidate).resolve()
            if path.is_relative_to(self._media) and path.is_file():
                return path
        raise CorpusError(f"{name}: no such image below {self._media}; name the folder of the images")


def _targets(file: Path) -> list[Target]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read: {error}") from error
    except ValueError as error:
        raise CorpusError(f"{file}: not JSON: {error}") from error
    if isinstance(data, dict) and {"images", "annotations"} <= set(data):
        read = _coco
    elif isinstance(data, list) and data and isinstance(data[0], dict) and "categories" in data[0]:
        read = _osprey
    elif isinstance(data, list) and data and isinstance(data[0], dict) and "regions" in data[0]:
        read = _visual_genome
    else:
        keys = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise CorpusError(f"{file}: neither COCO-style, nor Osprey's list, nor region descriptions; found {keys}")
    found: list[Target] = []
    try:
        found.extend(read(data))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CorpusError(f"{file}: the record behind target {len(found)} is not as expected: {error!r}") from error
    return found


def _coco(data: Any) -> Iterator[Target]:
    images = {image["id"]: image for image in data["images"]}
    categories = {category["id"]: category for category in data.get("categories", ())}
    for annotation in data["annotations"]:
        image = images[annotation["image_id"]]
        category = categories.get(annotation.get("category_id"), {})
        name = str(category.get("name", ""))
        texts = _texts(annotation) or _texts(image)
        if texts or name:
            yield Target(
                file=_file_name(image),
                name=str(annotation["id"]),
                box=_xyxy(annotation["bbox"]) if annotation.get("bbox") else None,
                segmentation=annotation.get("segmentation") or None,
                texts=texts,
                category=_spoken(name),
                synonyms=tuple(_spoken(s) for s in category.get("synonyms", ()) if s != name),
            )


def _osprey(data: Any) -> Iterator[Target]:
    for image in data:
        pairs = zip(image["categories"], image["annotations"], strict=True)
        for at, (category, annotation) in enumerate(pairs):
            box = _xyxy(annotation["bbox"]) if annotation.get("bbox") else None
            name = f"{image['file_name']}#{at}"
            yield Target(image["file_name"], name, box, annotation["segmentation"], (), _spoken(category))


def _visual_genome(data: Any) -> Iterator[Target]:
    for image in data:
        for region in image["regions"]:
            box = _xyxy([region[key] for key in ("x", "y", "width", "height")])
            phrase = " ".join(str(region["phrase"]).split())
            number = image.get("id", region.get("image_id"))
            yield Target(f"{number}.jpg", str(region["region_id"]), box, None, (phrase,), "")


def _merged(targets: Sequence[Target]) -> list[Target]:
    """Entries with the same image and box become one target with all their references."""
    found: dict[Any, Target] = {}
    for number, target in enumerate(targets):
        key: Any = (target.file, target.box) if target.box is not None and target.texts else number
        first = found.get(key)
        texts = target.texts if first is None else (*first.texts, *target.texts)
        found[key] = replace(first or target, texts=tuple(dict.fromkeys(texts)))
    return list(found.values())


def _texts(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """References of an entry: `caption`, `captions`, or `sentences` of strings or of {raw, sent}."""
    given = entry.get("captions") or entry.get("sentences") or entry.get("caption") or ()
    texts = [given] if isinstance(given, str) else given
    said = [t if isinstance(t, str) else t.get("raw") or t["sent"] for t in texts]
    return tuple(text.strip() for text in said if text.strip())


def _file_name(image: Mapping[str, Any]) -> str:
    """The image's file; LVIS names it only in its URL."""
    return str(image.get("file_name") or PurePosixPath(image["coco_url"]).name)


def _spoken(category: str) -> str:
    """`traffic_light:lamp` as people say it."""
    return " ".join(category.replace("_", " ").replace(":", " ").split())


def _xyxy(box: Sequence[float]) -> Box:
    x, y, width, height = (float(value) for value in box)
    return x, y, x + width, y + height


def _mask(target: Target, height: int, width: int) -> Rle | None:
    """The mask of polygons, compressed or plain run lengths, at the image's size."""
    given = target.segmentation
    if given is None:
        return None
    try:
        rle = _rle(given, height, width)
        mask = masks.decode(rle)
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{target.file}, {target.name}: the segmentation is no mask: {error}") from error
    return rle if mask.shape == (height, width) else masks.encode(masks.resize(mask, height, width))


def _rle(given: Any, height: int, width: int) -> Rle:
    if isinstance(given, list):
        return masks.from_polygons(given, height, width)
    rows, columns = given["size"]
    if isinstance(given["counts"], list):
        return masks.from_runs(given["counts"], rows, columns)
    return Rle(size=(rows, columns), counts=given["counts"])
