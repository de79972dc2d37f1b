"""The photos of the shapes world: native COCO, exact truth, the same bytes in any process."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from schemas.geometry import Rle
from stages.masks import box_of, decode
from stages.shapes.config import DEFECT_KINDS, ShapesConfig
from stages.shapes.images import write_images
from stages.shapes.palette import COLOURS, lab, nearest_colour
from stages.shapes.scene import MIN_VISIBLE, draw_scene


def digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        state.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return state.hexdigest()


def test_every_tone_is_nearest_to_its_own_name() -> None:
    for colour in COLOURS.values():
        assert nearest_colour(colour.rgb) == nearest_colour(colour.accent) == colour.name
    palette = lab(np.array([c.rgb for c in COLOURS.values()]))
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1) + 1e9 * np.eye(len(palette))
    assert distances.min() > 25


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    config = ShapesConfig(images=3, seed=5, defects=0.3)
    write_images(tmp_path / "here", config)
    code = (
        "import sys, pathlib; from stages.shapes.config import ShapesConfig;"
        "from stages.shapes.images import write_images;"
        "write_images(pathlib.Path(sys.argv[1]), ShapesConfig.model_validate_json(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there"), config.model_dump_json()], check=True)
    assert digest(tmp_path / "here") == digest(tmp_path / "there")


@pytest.mark.parametrize("size", [(96, 64), (320, 240), (200, 400)])
def test_masks_cover_the_drawn_pixels_and_do_not_overlap(size: tuple[int, int]) -> None:
    for seed in range(8):
        scene = draw_scene(np.random.default_rng([seed]), size)
        assert scene.image.shape == (size[1], size[0], 3)
        assert np.sum([i.mask for i in scene.instances], axis=0).max() <= 1
        for instance in scene.instances:
            assert box_of(instance.mask) == instance.box
            assert 0 <= instance.occlusion <= 1 - MIN_VISIBLE
            typical = np.median(scene.image[instance.mask], axis=0)
            assert nearest_colour(typical) == instance.look.colour


def test_written_photos_carry_the_colours_their_truth_names(tmp_path: Path) -> None:
    paths = write_images(tmp_path, ShapesConfig(images=4, seed=1, masks="rle"))
    coco, truth = (json.loads(p.read_text()) for p in (paths.annotations[0], paths.truth))
    images = {image["id"]: image for image in coco["images"]}
    assert len(coco["annotations"]) == len(truth["annotations"]) > 4
    for annotation in coco["annotations"]:
        fact = truth["annotations"][str(annotation["id"])]
        assert annotation["segmentation"] == fact["mask"]
        pixels = cv2.imread(str(paths.media / images[annotation["image_id"]]["file_name"]))[..., ::-1]
        mask = decode(Rle(**fact["mask"]))
        assert nearest_colour(np.median(pixels[mask], axis=0)) == fact["colour"]
        names = {c["id"]: c["name"] for c in coco["categories"]}
        assert names[annotation["category_id"]] == fact["kind"]


def test_jitter_moves_boxes_by_at_most_its_fraction(tmp_path: Path) -> None:
    paths = write_images(tmp_path, ShapesConfig(images=4, seed=2, jitter=0.1))
    coco, truth = (json.loads(p.read_text()) for p in (paths.annotations[0], paths.truth))
    moved = []
    for annotation in coco["annotations"]:
        x0, y0, x1, y1 = truth["annotations"][str(annotation["id"])]["box"]
        x, y, w, h = annotation["bbox"]
        shift = np.abs([x - x0, y - y0, x + w - x1, y + h - y1]) / [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        moved.append(shift.max())
    assert 0.02 < max(moved) <= 0.101


def test_planted_defects_are_what_the_truth_says(tmp_path: Path) -> None:
    paths = write_images(tmp_path, ShapesConfig(images=12, seed=3, defects=0.4))
    coco, truth = (json.loads(p.read_text()) for p in (paths.annotations[0], paths.truth))
    planted = truth["defects"]
    assert set(planted.values()) == set(DEFECT_KINDS)
    annotations = {str(a["id"]): a for a in coco["annotations"]}
    files = {image["id"]: paths.media / image["file_name"] for image in coco["images"]}
    known = {c["id"] for c in coco["categories"]}
    for number, kind in planted.items():
        annotation = annotations[number]
        x, _, w, _ = annotation["bbox"]
        path = files[annotation["image_id"]]
        assert (kind == "nan_box") == bool(np.isnan(x))
        assert (kind == "zero_area_box") == (w == 0)
        assert (kind == "missing_file") == (not path.exists())
        assert (kind == "unreadable_file") == (path.exists() and cv2.imread(str(path)) is None)
        assert (kind == "unknown_category") == (annotation["category_id"] not in known)
        assert (kind == "outside_box") == (x > 320)
