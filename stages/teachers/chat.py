"""The body of a chat request as OpenAI-compatible endpoints take it, and what comes back in one."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from schemas.caption import Usage
from stages.base import CannotGoOn
from stages.teachers.config import CapabilitiesConfig, TeacherConfig
from stages.teachers.judge import judge
from stages.teachers.protocol import Message, Reply, TeacherRequest

_LOOSE = frozenset({"pattern", "minLength", "maxLength"})
_SECRETS = (
    re.compile(r"\b(sk|key|tok|pat|hf|gsk)[-_][A-Za-z0-9_\-*]{6,}"),
    re.compile(r"(?i)\bauthorization\b\W+(?:bearer\s+)?\S+|\bbearer\s+\S+"),
    re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+@"),
    re.compile(r"\?[^\s\"']*(?:signature|token|key|credential|sig)=[^\s\"']*", re.IGNORECASE),
)


class TeacherSetupError(CannotGoOn):
    """The teacher cannot work as it is configured; the message says what to set."""


def chat_body(request: TeacherRequest, config: TeacherConfig) -> dict[str, Any]:
    """The fields of a chat completion request, the token limit and what the endpoint can do included."""
    can = config.capabilities
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [_message(message, request, can) for message in request.messages],
        can.token_field: request.max_tokens,
    }
    if can.sampling:
        body |= {"temperature": request.decoding.temperature, "top_p": request.decoding.top_p}
    if can.seed and request.decoding.seed is not None:
        body["seed"] = request.decoding.seed
    schema = request.schema if can.patterns else _loosened(request.schema)
    if can.structured == "json_schema":
        named = {"name": request.answer.__name__, "schema": schema, "strict": can.strict}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif can.structured == "structured_outputs":
        body["structured_outputs"] = {"json": schema}
    return body | can.extra_body


def read_completion(request: TeacherRequest, body: Any) -> Reply:
    """The typed reply in a chat completion's JSON. Raises `ValueError` for JSON that is no chat completion."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = _said(message.get("content")), _said(message.get("refusal"))
        usage = body.get("usage") or {}
        used = Usage(
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the server's JSON is no chat completion: {type(error).__name__} {error}") from error
    return judge(request, text, choice.get("finish_reason"), refusal, used)


def _said(content: Any) -> str | None:
    """What a message says: some servers send a list of parts; anything else is left to the judge as its JSON."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    told = [text for text in texts if isinstance(text, str)]
    return "".join(told) if told or not parts else json.dumps(content)


def api_key(config: TeacherConfig) -> str | None:
    """The key from the environment. Raises `TeacherSetupError` when the named variable is not set."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise TeacherSetupError(f"teacher.api_key_env names {config.api_key_env}, which is not set in this environment")
    return key


def redact(text: str, key: str | None = None) -> str:
    """The text without the key, anything that looks like one, credentials and signatures of URLs."""
    if key:
        text = text.replace(key, "[key]")
    for pattern in _SECRETS:
        text = pattern.sub("[hidden]", text)
    return text


def _message(message: Message, request: TeacherRequest, can: CapabilitiesConfig) -> dict[str, Any]:
    if not message.pictures:
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = []
    for picture in message.pictures:
        image = {"url": picture.data_url()}
        if can.image_detail:
            image["detail"] = request.detail
        parts.append({"type": "image_url", "image_url": image})
    return {"role": message.role, "content": [*parts, {"type": "text", "text": message.text}]}


def _loosened(schema: Any) -> Any:
    """The schema without patterns and text lengths; a property that bears such a name stays."""
    if isinstance(schema, list):
        return [_loosened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: _loosened(value) for key, value in value.items()} if name == "properties" else _loosened(value)
        for name, value in schema.items()
        if name not in _LOOSE
    }
