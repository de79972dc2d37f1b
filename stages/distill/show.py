"""A request as its teacher gets it, for people to read."""

from __future__ import annotations

import json

from stages.teachers.pricing import Price, request_tokens
from stages.teachers.protocol import TeacherRequest


def show_request(request: TeacherRequest, price: Price) -> str:
    """The conversation as Markdown: each turn's text, its pictures by size, the schema, and an estimate of tokens."""
    parts = [f"model {request.model}, at most {request.max_tokens} tokens, digest {request.digest.hex()}"]
    for message in request.messages:
        parts.append(f"## {message.role}")
        for number, picture in enumerate(message.pictures, 1):
            size = f"{picture.width} x {picture.height}"
            tokens = price.images.tokens(picture.width, picture.height, request.detail)
            kind = f"{picture.media_type}, {len(picture.data)} bytes" if picture.data else "pixels"
            parts.append(f"[picture {number}: {size}, {kind}, {tokens} tokens]")
        parts.append(message.text)
    parts += ["## schema", json.dumps(request.schema, indent=2, ensure_ascii=False)]
    parts.append(f"about {request_tokens(request, price)} prompt tokens")
    return "\n\n".join(parts)
