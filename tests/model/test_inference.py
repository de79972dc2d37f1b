"""PAM in use, with random weights: shapes, batches, clips, streams, overlays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.generate import GenerationConfig
from model.inference import PAM, Request
from model.overlay import overlay, write_mp4, write_png
from model.pam import Pam
from model.stream import StreamConfig, stream
from model.vision import FrozenSam, Prompt
from stages.sam2.nano import NanoConfig, build_nano

BOX = (20.0, 10.0, 90.0, 70.0)


@pytest.fixture
def sam() -> FrozenSam:
    torch.manual_seed(0)
    model: Any = build_nano(NanoConfig(image_size=128, embed_dim=16, memory_layers=1))
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    return FrozenSam(model)


@pytest.fixture
def pam(tiny_pam: Pam, sam: FrozenSam, tokenizer: Any) -> PAM:
    return PAM(tiny_pam, sam, tokenizer, GenerationConfig(max_new_tokens=6))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)


def test_a_batch_answers_each_request_as_it_would_alone(pam: PAM, image: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "photo.png")
    other = image[::-1].copy()
    requests = [
        Request(image, Prompt(box=BOX), "label"),
        Request(other, Prompt(points=((30.0, 30.0),), point_labels=(1,)), "detailed"),
        Request(str(tmp_path / "photo.png"), Prompt(box=BOX), "label"),
    ]
    batch = pam.describe_batch(requests)
    alone = pam.describe(image, box=BOX, task="label")
    assert batch[0].text == batch[2].text == alone.text
    assert batch[0].mask.shape == (96, 160)
    np.testing.assert_array_equal(batch[0].mask, alone.mask)
    assert batch[1].text == pam.describe(other, points=[(30, 30)], task="detailed").text


def test_many_pictures_are_encoded_in_parts_and_answered_in_order(
    pam: PAM, sam: FrozenSam, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [np.roll(image, at, axis=1) for at in range(18)]
    # pictures in turn, twice, so that the questions of a part lie apart
    requests = [Request(pictures[at % 18], Prompt(box=(20.0 + at, 10.0, 90.0, 70.0)), "label") for at in range(36)]
    together: list[int] = []
    encode = sam.encode
    monkeypatch.setattr(sam, "encode", lambda pixels: (together.append(len(pixels)), encode(pixels))[1])
    batch = pam.describe_batch(requests)
    assert together == [16, 2]
    for at in (0, 17, 30):
        alone = pam.describe_batch([requests[at]])[0]
        assert batch[at].text == alone.text
        np.testing.assert_array_equal(batch[at].mask, alone.mask)


def test_a_clip_gives_a_mask_a_frame(pam: PAM, image: np.ndarray) -> None:
    frames = np.stack([np.roll(image, 3 * at, axis=1) for at in range(11)])
    out = pam.describe_clip(frames, Prompt(box=BOX))
    assert len(out.masks) == 11
    with pytest.raises(ValueError, match="no frames"):
        pam.describe_clip(frames[:0], Prompt(box=BOX))


class _Blink:
    """A SAM 2 that loses every target on the frames named, as if it had left."""

    def __init__(self, sam: FrozenSam, gone: set[int]) -> None:
        self.at, inner = -1, sam.sam._forward_sam_heads

        def heads(**kwargs: Any) -> Any:
            self.at += 1
            out = list(inner(**kwargs))
            if self.at in gone:
                out[6] = torch.full_like(out[6], -9.0)
            return tuple(out)

        sam.sam._forward_sam_heads = heads


def test_a_stream_carries_the_target_and_says_when_it_is_lost(pam: PAM, sam: FrozenSam, image: np.ndarray) -> None:
    frames = np.stack([image] * 12)
    _Blink(sam, gone={3, 4, 5, 6, 7, 8, 9})
    asked: list[str] = []
    inner = pam.answer
    pam.answer = lambda video, embed, tokens, users: asked.append(users[0]) or inner(video, embed, tokens, users)
    segments = list(stream(pam, frames, Prompt(box=BOX), StreamConfig(clip_frames=4)))
    assert [s.frames for s in segments] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [s.lost for s in segments] == [False, True, False]
    assert segments[1].text is None
    assert segments[1].masks == [None] * 4
    assert [m is not None for m in segments[2].masks] == [False, False, True, True]
    assert asked[0].endswith("Previous caption: None")
    assert asked[1].endswith(f"Previous caption: {segments[0].text}")


def test_overlays_show_the_mask_and_the_words(tmp_path: Path, image: np.ndarray) -> None:
    mask = np.zeros((96, 160), bool)
    mask[20:60, 30:90] = True
    drawn = overlay(image, mask, "a red square on the left of a textured ground, seen from above")
    assert drawn.shape[0] > 96
    np.testing.assert_array_equal(drawn[:10, :20], image[:10, :20])
    assert (drawn[30:50, 40:80] != image[30:50, 40:80]).any(axis=-1).mean() > 0.9
    write_png(tmp_path / "a" / "out.png", drawn)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "out.png")), drawn)
    assert write_mp4(tmp_path / "out.mp4", [overlay(image, mask)] * 5, 6.0) == 5
    import av

    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    with pytest.raises(ValueError, match="the mask is"):
        overlay(image, mask[:50])


def test_a_pam_refuses_the_wrong_sam(tiny_pam: Pam, tokenizer: Any) -> None:
    wide = FrozenSam(build_nano(NanoConfig(image_size=64, embed_dim=16, d_model=32)))
    with pytest.raises(ValueError, match="64 channels"):
        PAM(tiny_pam, wide, tokenizer)
