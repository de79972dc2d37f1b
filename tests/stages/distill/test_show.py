"""A request shown to people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.distill.answers import BriefAnswer
from stages.distill.show import save_request, show_request
from stages.teachers.pricing import price_of
from stages.teachers.protocol import Decoding, Message, TeacherRequest
from stages.views.config import ViewConfig
from stages.views.encode import to_picture


@pytest.mark.parametrize("encoded", [True, False])
def test_a_request_is_saved_with_its_pictures(tmp_path: Path, encoded: bool) -> None:
    drawn = [to_picture(np.full((448, 448, 3), shade, np.uint8), ViewConfig(), encoded=encoded) for shade in (7, 200)]
    turns = (Message("system", "Describe the target."), Message("user", "What is it?", tuple(drawn)))
    request = TeacherRequest(model="gpt-4o", messages=turns, answer=BriefAnswer, decoding=Decoding(), max_tokens=64)
    text, *pictures = save_request(request, price_of("gpt-4o"), tmp_path / "new" / "folder")
    assert text.read_text() == show_request(request, price_of("gpt-4o")) + "\n"
    assert [path.suffix for path in pictures] == [".jpeg" if encoded else ".png"] * 2
    shades = [cv2.imread(str(path)).mean() for path in pictures]
    assert shades == pytest.approx([7, 200], abs=1)


def test_a_request_is_shown_whole_and_without_its_pixels() -> None:
    picture = to_picture(np.full((448, 448, 3), 7, np.uint8), ViewConfig(), encoded=True)
    turns = (Message("system", "Describe the target."), Message("user", "What is it?", (picture,)))
    request = TeacherRequest(model="gpt-4o", messages=turns, answer=BriefAnswer, decoding=Decoding(), max_tokens=64)
    shown = show_request(request, price_of("gpt-4o"))
    for part in ("## system", "Describe the target.", "448 x 448, image/jpeg", "255 tokens", '"caption"', "64 tokens"):
        assert part in shown
    assert request.digest.hex() in shown
    assert "base64" not in shown
