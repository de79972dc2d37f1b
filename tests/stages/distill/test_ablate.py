"""Views compared on the same regions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from schemas.arrow import to_table
from schemas.keys import digest_value
from stages.distill import CaptionsConfig
from stages.distill.ablate import ablate_views, agrees, leaks, page
from stages.distill.units import CaptionUnit
from stages.masks import encode
from stages.shapes.scene import draw_scene
from stages.teachers.config import TeacherConfig


def test_views_are_measured_on_the_users_own_teacher(teacher_server: Callable[..., Any], tmp_path: Path) -> None:
    def answer(chat: Any) -> dict[str, str]:
        if "thin line" in chat.text:
            return {"caption": "A thing with a highlighted outline."}
        return {"caption": f"A plain {chat.text.split('call the target: ')[1].split('.')[0]}."}

    server = teacher_server(answer=answer)
    units = []
    for index in range(3):
        scene = draw_scene(np.random.default_rng(index), (160, 120))
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), scene.image)
        one, key = scene.instances[0], digest_value(index)
        units.append(
            CaptionUnit(
                caption_key=key, region_key=key, media_key=key, task="brief", language="en", uri=str(path),
                kind="image", source="s", label=one.look.kind, width=160, height=120, mask=encode(one.mask),
                box=one.box,
                input_digest=key,
            )
        )  # fmt: skip
    teacher = TeacherConfig(backend="openai", model="gpt-4o", base_url=server.url)
    table = to_table(units, CaptionUnit)
    done = ablate_views(teacher, CaptionsConfig(), table, ["crop_mask", "contour"], str(tmp_path / "ledger"))
    crop, line = done.results
    assert (crop.agreement, crop.leakage) == (1.0, 0.0)
    assert (line.agreement, line.leakage) == (0.0, 1.0)
    assert crop.tokens > line.tokens, "two pictures cost more than one"
    assert crop.cost_usd
    shown = page(done)
    assert shown.count("<img") == 3 * (2 + 1)
    assert "highlighted outline" in shown
    with pytest.raises(ValueError, match="no regions"):
        ablate_views(teacher, CaptionsConfig(), table.slice(0, 0), ["contour"])
    with pytest.raises(ValueError, match="choose from"):
        ablate_views(teacher, CaptionsConfig(), table, ["blur"])


def test_agreement_and_leakage_are_by_whole_words() -> None:
    assert agrees("polar_bear", "Two polar bears.")
    assert not agrees("cat", "A category of things.")
    assert agrees("杯子", "一个红色的杯子。")
    assert leaks("The masked region is red.", "en")
    assert not leaks("A red cup.", "en")
    assert leaks("图中有一个杯子。", "zh")
