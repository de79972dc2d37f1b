"""A request as its teacher gets it, for people to read."""

from __future__ import annotations

import json
from pathlib import Path

from stages.teachers.pricing import Price, request_tokens
from stages.teachers.protocol import Picture, TeacherRequest
from stages.views.config import ViewConfig
from stages.views.encode import encode


def show_request(request: TeacherRequest, price: Price) -> str:
    """The conversation as Markdown: each turn's text, its pictures by size, the schema, and an estimate of tokens."""
    parts = [f"model {request.model}, at most {request.max_tokens} tokens, digest {request.digest.hex()}"]
    number = 0
    for message in request.messages:
        parts.append(f"## {message.role}")
        for picture in message.pictures:
            number += 1
            size = f"{picture.width} x {picture.height}"
            tokens = price.images.tokens(picture.width, picture.height, request.detail)
            kind = f"{picture.media_type}, {len(picture.data)} bytes" if picture.data else "pixels"
            parts.append(f"[picture {number}: {size}, {kind}, {tokens} tokens]")
        parts.append(message.text)
    parts += ["## schema", json.dumps(request.schema, indent=2, ensure_ascii=False)]
    parts.append(f"about {request_tokens(request, price)} prompt tokens")
    return "\n\n".join(parts)


def save_request(request: TeacherRequest, price: Price, folder: Path) -> list[Path]:
    """Writes `request.md` and the pictures in their order, the very bytes that are sent; returns the paths.

    Pictures that go to an engine as pixels are written as PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "request.md"]
    written[0].write_text(show_request(request, price) + "\n", encoding="utf-8")
    pictures = [picture for message in request.messages for picture in message.pictures]
    for number, picture in enumerate(pictures, 1):
        suffix, data = _file(picture)
        written.append(folder / f"picture_{number}.{suffix}")
        written[-1].write_bytes(data)
    return written


def _file(picture: Picture) -> tuple[str, bytes]:
    if picture.data is not None:
        return picture.media_type.rpartition("/")[2], picture.data
    assert picture.pixels is not None
    return "png", encode(picture.pixels, ViewConfig(encoding="png"))
