"""Refinement of still images: drawn scenes with known masks, damaged inputs, and the choice between masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from schemas.arrow import from_table, to_table
from schemas.geometry import Point
from schemas.keys import digest_value
from schemas.mask import Mask
from stages import masks
from stages.base import checked
from stages.refine.config import RefineConfig
from stages.refine.grabcut import GrabCut
from stages.refine.seeds import Candidate, RefineUnit, Seed
from stages.refine.stage import build_refine
from stages.refine.verdict import agreement, choose, judge
from stages.shapes.scene import draw_scene


def key(*parts: object) -> bytes:
    return digest_value([str(part) for part in parts])


def save(path: Path, image: np.ndarray) -> str:
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return str(path)


def unit(uri: str, image: np.ndarray, name: str, **prompt: object) -> RefineUnit:
    return RefineUnit(
        input_digest=key("input", uri, name), region_key=key(uri, name), media_key=key(uri), uri=uri, kind="image",
        height=image.shape[0], width=image.shape[1], **prompt,
    )  # fmt: skip


def run(units: list[RefineUnit], config: RefineConfig | None = None) -> dict[bytes, Mask]:
    stage = build_refine(config or RefineConfig())
    stage.open()
    rows = [row for table in checked(stage, to_table(units, RefineUnit)) for row in from_table(table, Mask)]
    stage.close()
    return {row.region_key: row for row in rows}


def jittered(box: tuple[float, ...], rng: np.random.Generator, share: float) -> tuple[float, float, float, float]:
    width, height = box[2] - box[0], box[3] - box[1]
    shift = rng.uniform(-share, share, 4) * (width, height, width, height)
    x0, y0, x1, y1 = (float(edge + move) for edge, move in zip(box, shift, strict=True))
    return (x0, y0, x1, y1)


def test_grabcut_turns_boxes_into_masks_far_better_than_the_boxes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    before, after, units, truth = [], [], [], {}
    for number in range(6):
        scene = draw_scene(rng, size=(256, 256))
        uri = save(tmp_path / f"{number}.png", scene.image)
        for index, shape in enumerate(scene.instances):
            box = jittered(shape.box, rng, 0.03)
            units.append(unit(uri, scene.image, str(index), box=box))
            truth[units[-1].region_key] = shape.mask
            before.append(masks.jaccard(masks.from_box(box, 256, 256), shape.mask))
    rows = run(units)
    assert set(rows) == set(truth)
    for region, row in rows.items():
        assert row.status == "ok", row.message
        assert row.mask is not None
        after.append(masks.jaccard(masks.decode(row.mask), truth[region]))
    assert np.mean(after) > 0.85
    assert np.mean(after) > np.mean(before) + 0.1
    again = run(units)
    assert all(again[region].digest == row.digest for region, row in rows.items())


def test_every_fact_of_a_row_is_filled_and_estimates_grabcut_cannot_give_are_null(tmp_path: Path) -> None:
    scene = draw_scene(np.random.default_rng(5), objects=(1, 1), textures=("plain",), kinds=("circle",))
    uri = save(tmp_path / "a.png", scene.image)
    row = next(iter(run([unit(uri, scene.image, "0", box=scene.instances[0].box)]).values()))
    assert row.mask_source == "refined"
    assert row.predicted_iou is None
    assert row.stability is None
    assert row.seed_agreement is not None
    assert row.seed_agreement > 0.9
    assert row.area_share == pytest.approx(scene.instances[0].area_share, rel=0.05)
    assert (row.parts, row.segment, row.num_segments, row.backend) == (1, 0, 1, "grabcut")


def test_damage_fails_its_own_rows_only(tmp_path: Path) -> None:
    scene = draw_scene(np.random.default_rng(1), objects=(2, 2))
    good = save(tmp_path / "good.png", scene.image)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    box = scene.instances[0].box
    units = [
        unit(good, scene.image, "good", box=box),
        unit(good, scene.image, "outside", box=(900.0, 900.0, 950.0, 950.0)),
        unit(good, scene.image, "nothing"),
        unit(good, scene.image, "other size", mask=masks.encode(np.ones((9, 9), np.bool_))),
        unit(
            good, scene.image, "cut off", mask=masks.encode(scene.instances[0].mask).model_copy(update={"counts": "o"})
        ),
        unit(str(tmp_path / "broken.png"), scene.image, "broken", box=box),
        unit(str(tmp_path / "gone.png"), scene.image, "gone", box=box),
    ]
    reasons = {u.uri.rsplit("/", 1)[1] + ":" + str(i): run_row.reason for i, u in enumerate(units)
               for run_row in [run(units)[u.region_key]]}  # fmt: skip
    assert list(reasons.values()) == [
        None, "box_outside", "no_prompt", "bad_mask", "bad_mask", "unreadable_media", "missing_media",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (250, 250, 256, 256), (10, 10, 10.4, 200), (0, 0, 256, 256), (3, 3, 9, 9)]
)
def test_grabcut_survives_extreme_boxes(box: tuple[float, float, float, float]) -> None:
    scene = draw_scene(np.random.default_rng(2))
    mask = GrabCut().segment(scene.image, Seed(box, (), None))
    assert mask.shape == (256, 256)
    assert mask.any() or masks.area(masks.from_box(box, 256, 256)) == 0


def test_grabcut_takes_points_alone_and_rough_masks() -> None:
    scene = draw_scene(np.random.default_rng(11), objects=(1, 1), textures=("plain",), kinds=("square",))
    truth = scene.instances[0].mask
    x0, y0, x1, y1 = scene.instances[0].box
    by_point = GrabCut().segment(scene.image, Seed(None, (Point(x=(x0 + x1) / 2, y=(y0 + y1) / 2),), None))
    assert masks.jaccard(by_point, truth) > 0.8
    rough = cv2.dilate(truth.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    by_mask = GrabCut().segment(scene.image, Seed(None, (), rough))
    assert masks.jaccard(by_mask, truth) > masks.jaccard(rough, truth) + 0.05


class TestChoice:
    """A good source mask is never replaced by a worse one."""

    image = np.full((64, 64, 3), 40, np.uint8)
    truth = np.zeros((64, 64), np.bool_)
    truth[16:48, 16:48] = True
    image[truth] = 220

    def loose(self) -> np.ndarray:
        mask = np.zeros((64, 64), np.bool_)
        mask[14:50, 14:50] = True
        return mask

    def pick(
        self, refined: np.ndarray, source: np.ndarray, iou: float | None = 0.95, stable: float | None = 0.97
    ) -> str:
        return choose(self.image, Seed(None, (), source), Candidate(refined, iou, stable), "auto")[0]

    def test_a_sure_correction_on_better_edges_wins(self) -> None:
        assert self.pick(self.truth, self.loose()) == "refined"

    def test_a_worse_mask_never_wins(self) -> None:
        assert self.pick(self.loose(), self.truth) == "source"

    def test_an_unsure_refiner_never_wins(self) -> None:
        assert self.pick(self.truth, self.loose(), iou=0.8) == "source"
        assert self.pick(self.truth, self.loose(), stable=0.8) == "source"
        assert self.pick(self.truth, self.loose(), iou=None, stable=None) == "source"

    def test_another_object_never_wins(self) -> None:
        other = np.roll(self.truth, 12, axis=1)
        assert self.pick(self.truth, other) == "source"

    def test_an_empty_refinement_never_wins(self) -> None:
        assert self.pick(np.zeros_like(self.truth), self.truth) == "source"

    def test_the_setting_overrides(self) -> None:
        seed = Seed(None, (), self.truth)
        assert choose(self.image, seed, Candidate(self.loose()), "refined")[0] == "refined"
        assert choose(self.image, seed, Candidate(self.loose()), "source")[0] == "source"

    def test_small_holes_are_filled_and_counted_large_ones_stay(self) -> None:
        mask = self.truth.copy()
        mask[20, 20] = False
        mask[30:40, 30:40] = False
        verdict = judge(self.image, Seed((16, 16, 48, 48), (), None), Candidate(mask), "auto", fill_holes=0.01)
        assert verdict.holes_filled == 1
        assert verdict.mask[20, 20]
        assert not verdict.mask[35, 35]

    def test_agreement_goes_by_what_the_seed_has(self) -> None:
        assert agreement(Candidate(self.truth), Seed((16, 16, 48, 48), (), None)) == 1.0
        assert agreement(Candidate(self.truth), Seed((16, 16, 48, 48), (), self.loose())) == pytest.approx(
            32**2 / 36**2
        )
        points = (Point(x=20, y=20), Point(x=5, y=5, label=0), Point(x=60, y=60))
        assert agreement(Candidate(self.truth), Seed(None, points, None)) == pytest.approx(2 / 3)


def test_settings_follow_what_decides_a_mask_and_nothing_else() -> None:
    base = RefineConfig(backend="sam2", checkpoint="facebook/sam2.1-hiera-tiny", device="cpu")
    same = base.model_copy(update={"image_batch": 3, "workers": 2, "compile": "off"})
    other = base.model_copy(update={"two_pass": True})
    assert build_refine(base).settings() == build_refine(same).settings()
    assert build_refine(base).settings() != build_refine(other).settings()
