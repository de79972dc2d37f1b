"""The readings that tell the small SAM 2 what its targets are."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from stages.sam2.attributes import UNKNOWN, Attributes, measures


def _drawn(angle: float, centre: tuple[float, float]) -> torch.Tensor:
    canvas = np.zeros((96, 96), np.uint8)
    cv2.ellipse(canvas, (*centre,), (24, 10), angle, 0, 360, 1, -1)
    return torch.from_numpy(canvas)[None].float()


def test_measures_follow_place_size_colour_and_turn() -> None:
    level, upright = _drawn(0, (30, 60)), _drawn(90, (30, 60))
    red = torch.zeros(1, 3, 96, 96)
    red[:, 0] = 255
    found, turned = measures(level, red)[0], measures(upright, red)[0]
    assert abs(found[0] - (30.5 / 48 - 1)) < 0.01
    assert abs(found[1] - (60.5 / 48 - 1)) < 0.01
    assert found[3:6].tolist() == [1, -1, -1]
    assert abs(found[2] - turned[2]) < 0.02, "turning leaves the size"
    assert found[6] > 0.4, "the second moment points along the longer axis"
    assert turned[6] < -0.4


def test_the_readings_learn_kinds_and_pass_over_what_is_not_there() -> None:
    torch.manual_seed(0)
    reading = Attributes(16)
    truth = torch.stack([_drawn(0, (48, 48))[0] > 0, torch.zeros(96, 96, dtype=torch.bool)])
    pixels = torch.full((2, 3, 96, 96), 200, dtype=torch.uint8)
    token, embed = torch.randn(2, 16, requires_grad=True), torch.randn(2, 16, 6, 6)
    kinds = torch.tensor([4, UNKNOWN])
    optimiser = torch.optim.Adam(reading.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss, right = reading.loss(token, embed, truth, pixels, kinds)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert right == 1
    assert token.grad is not None
    assert token.grad[0].abs().sum() > 0
    assert token.grad[1].abs().sum() == 0
    nothing, _ = reading.loss(token[1:], embed[1:], truth[1:], pixels[1:], kinds[1:])
    assert nothing.item() == 0
