"""A real HTTP server that speaks OpenAI's chat and batch protocols and answers by script.

It answers every chat request with an object that is valid by the JSON schema sent, or misbehaves as told: 429 with
Retry-After, 500, dropped connections, slow drips, cut-off JSON, wrong schema, refusals, cut answers. It keeps what it
was asked, and counts what it bills and what of that it delivered whole. Run as a program it serves until its standard
input closes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any

SENTENCE = "a small red metal thing with two round handles and one smooth side that stands on four short legs"
WORDS = SENTENCE.split()
ZH = "一个红色的小型金属物体带有两个圆形把手侧面光滑立在四条短腿上"
FAULTS = ("429", "500", "drop", "drip", "cut", "schema")


@dataclass
class Chat:
    """One chat request as it came in: its body, all its text, its pictures' bytes, the authorization header."""

    body: dict[str, Any]
    authorization: str = ""
    custom_id: str | None = None

    @property
    def schema(self) -> dict[str, Any] | None:
        wanted = self.body.get("response_format") or {}
        return (wanted.get("json_schema") or {}).get("schema") or (self.body.get("structured_outputs") or {}).get(
            "json"
        )

    @property
    def parts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for message in self.body["messages"]:
            content = message["content"]
            found += [{"type": "text", "text": content}] if isinstance(content, str) else content
        return found

    @property
    def text(self) -> str:
        return "\n".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def images(self) -> list[bytes]:
        urls = [part["image_url"]["url"] for part in self.parts if part["type"] == "image_url"]
        return [base64.b64decode(url.partition("base64,")[2]) for url in urls]

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()


def answer_for(chat: Chat) -> dict[str, Any]:
    """A valid answer: words drawn by the request's own content, Chinese where the prompt is Chinese."""
    rng = random.Random(chat.identity)
    chinese = len(re.findall(r"[\u4e00-\u9fff]", chat.text)) > 40

    def text(name: str) -> str:
        if name == "label":
            return "物体" if chinese else "metal thing"
        count = {"detailed": 60, "definition": 12}.get(name, 16)
        if chinese:
            return "".join(rng.choice(ZH) for _ in range(count)) + "。"
        return " ".join(rng.choice(WORDS) for _ in range(count)).capitalize() + "."

    return {name: text(name) for name in (chat.schema or {}).get("properties", {})}


def default_tokens(text: str) -> int:
    """A crude count of tokens: a token each four bytes."""
    return max(1, len(text.encode()) // 4)


@dataclass
class TeacherServer:
    """Settings and counters; `start` serves on a thread and sets `url`."""

    latency_s: float = 0.0
    fault_share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    seed: int = 0
    answer: Callable[[Chat], dict[str, Any] | str] = answer_for
    verdict: Callable[[Chat], str] = lambda chat: "answer"
    count_tokens: Callable[[str], int] = default_tokens
    image_tokens: int = 85
    count_image: Callable[[bytes], int] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    reject: tuple[int, str | None] = (401, None)
    content: Any = None
    keep_chats: bool = True
    batch_polls: int = 2
    batch_verdict: Callable[[Chat, int], str] = lambda chat, row: "answer"
    batch_end: str = "completed"
    batches_without_room: int = 0
    poll_faults: int = 0
    refuse_uploads: bool = False
    url: str = ""
    chats: list[Chat] = field(default_factory=list)
    billed: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    faults_served: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: int = 0

    def start(self) -> TeacherServer:
        ready = threading.Event()
        self._rng = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048)
            self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
            ready.set()

        def run() -> None:
            self._loop.run_until_complete(serve())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        ready.wait(10)
        return self

    def stop(self) -> None:
        def close() -> None:
            self._server.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.call_later(0.05, self._loop.stop)

        self._loop.call_soon_threadsafe(close)
        self._thread.join(5)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, _, rest = head.partition(b"\r\n")
                method, path, _ = first.decode().split(" ")
                headers = {k.lower(): v for k, v in BytesParser().parsebytes(rest, headersonly=True).items()}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if not await self._answer(method, path, headers, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Serves one request; returns whether the connection lives on."""
        if path.endswith("/chat/completions"):
            return await self._chat(headers, body, writer)
        status, reply = self._batch_api(method, path, headers, body)
        await send(writer, status, reply, {})
        return True

    async def _chat(self, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        chat = Chat(json.loads(body), headers.get("authorization", ""))
        if self.keep_chats:
            self.chats.append(chat)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency_s)
            fault = self._rng.choice(self.faults) if self._rng.random() < self.fault_share else None
            if fault:
                self.faults_served[fault] += 1
            return await self._respond(chat, fault, writer)
        finally:
            self.in_flight -= 1

    async def _respond(self, chat: Chat, fault: str | None, writer: asyncio.StreamWriter) -> bool:
        if fault == "429":
            await send(writer, 429, error("slow down"), {"retry-after": "0.05"})
            return True
        if fault == "500":
            await send(writer, 500, error("an internal error"), {})
            return True
        if fault == "drop":
            return False
        verdict = "schema" if fault == "schema" else self.verdict(chat)
        if verdict == "echo":
            signed = "https://bucket.example/x.jpg?X-Amz-Credential=AKIAPLANTED&X-Amz-Signature=planted5ignature"
            await send(writer, 401, error(f"Incorrect API key provided: {chat.authorization}, see {signed}"), {})
            return True
        if verdict == "reject":
            await send(writer, self.reject[0], error("not for you", self.reject[1]), self.headers)
            return True
        data = json.dumps(self.completion(chat, verdict)).encode()
        self.billed[chat.identity] += 1
        if fault == "cut":
            await send(writer, 200, data[: len(data) // 2], {})
            return True
        if fault == "drip":
            writer.write(response_head(200, len(data), {}))
            for start in range(0, len(data), max(1, len(data) // 5)):
                writer.write(data[start : start + max(1, len(data) // 5)])
                await writer.drain()
                await asyncio.sleep(0.3)
            self.delivered[chat.identity] += 1
            return True
        await send(writer, 200, data, self.headers)
        self.delivered[chat.identity] += 1
        return True

    def completion(self, chat: Chat, verdict: str) -> dict[str, Any]:
        """A chat completion: an answer, or one that is refused, truncated or of the wrong schema."""
        made = self.answer(chat) if verdict == "answer" else None
        text = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)
        finish, refusal = "stop", None
        if verdict == "refused":
            text, refusal = None, "I'm sorry, I can't help with that."
        elif verdict == "truncated":
            text, finish = '{"caption": "A red th', "length"
        elif verdict in ("schema", "invalid"):
            text = '{"colour": "red"}'
        count = self.count_image or (lambda data: self.image_tokens)
        prompt = self.count_tokens(chat.text) + sum(count(image) for image in chat.images)
        self.prompt_tokens += prompt
        usage = {"prompt_tokens": prompt, "completion_tokens": self.count_tokens(text or "x")}
        self.completion_tokens += usage["completion_tokens"]
        content = text if self.content is None else self.content
        message = {"role": "assistant", "content": content, "refusal": refusal}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": chat.body["model"],
            "choices": [choice], "usage": usage | {"total_tokens": sum(usage.values())},
        }  # fmt: skip

    def _batch_api(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        steps = path.split("?")[0].strip("/").split("/")[1:]
        self._authorization = headers.get("authorization", "")
        if (method, steps) == ("POST", ["files"]) and self.refuse_uploads:
            return 401, error("not for you")
        if (method, steps) == ("POST", ["files"]):
            name = f"file-{len(self.files)}"
            self.files[name] = uploaded(headers["content-type"], body)
            self.uploads += 1
            return 200, file_object(name, len(self.files[name]))
        if method == "GET" and steps[0] == "files" and len(steps) == 3:
            return (200, self.files[steps[1]]) if steps[1] in self.files else (404, error("no such file"))
        if (method, steps) == ("POST", ["batches"]):
            asked = json.loads(body)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name, "object": "batch", "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"],
                "completion_window": asked["completion_window"], "status": "validating", "created_at": 1,
                "metadata": asked.get("metadata"), "polls": 0,
            }  # fmt: skip
            return 200, self.batches[name]
        if method == "GET" and steps == ["batches"]:
            return 200, {"object": "list", "data": list(self.batches.values()), "has_more": False}
        if method == "GET" and steps[0] == "batches":
            self.poll_faults -= 1
            return (503, error("overloaded")) if self.poll_faults >= 0 else self._poll(steps[1])
        if method == "POST" and steps[0] == "batches" and steps[-1] == "cancel":
            self.batches[steps[1]]["status"] = "cancelled"
            return 200, self.batches[steps[1]]
        return 404, error(f"nothing at {path}")

    def _poll(self, name: str) -> tuple[int, Any]:
        if name not in self.batches:
            return 404, error("no such batch")
        batch = self.batches[name]
        batch["polls"] += 1
        if batch["polls"] < self.batch_polls:
            batch["status"] = "in_progress"
        elif self.batches_without_room and batch["status"] in ("validating", "in_progress"):
            self.batches_without_room -= 1
            told = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "param": None}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [told]}}
        elif batch["status"] in ("validating", "in_progress"):
            self._finish(batch)
        return 200, batch

    def _finish(self, batch: dict[str, Any]) -> None:
        done, failed = [], []
        for row, line in enumerate(self.files[batch["input_file_id"]].splitlines()):
            asked = json.loads(line)
            chat = Chat(asked["body"], custom_id=asked["custom_id"])
            verdict = self.batch_verdict(chat, row)
            if verdict == "missing":
                continue
            if verdict in ("error", "echo"):
                echoed = f"Incorrect API key provided: {self._authorization}".replace("Bearer ", "")
                status, said = (500, "the server had an error") if verdict == "error" else (401, echoed)
                response = {"status_code": status, "body": error(said)}
                failed.append({"custom_id": chat.custom_id, "response": response, "error": None})
                continue
            self.chats.append(chat)
            self.billed[chat.identity] += 1
            response = {"status_code": 200, "request_id": "r", "body": self.completion(chat, verdict)}
            done.append({"id": f"r{row}", "custom_id": chat.custom_id, "response": response, "error": None})
        batch["status"] = self.batch_end
        for field_name, rows in (("output_file_id", done), ("error_file_id", failed)):
            if rows:
                name = f"file-{len(self.files)}"
                # Results come in no particular order.
                self.files[name] = "\n".join(json.dumps(row) for row in reversed(rows)).encode()
                batch[field_name] = name


def uploaded(content_type: str, body: bytes) -> bytes:
    """The file in a multipart form."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    for part in body.split(boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename=" in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("the form holds no file")


def file_object(name: str, size: int) -> dict[str, Any]:
    fixed = {"object": "file", "created_at": 1, "filename": "x", "purpose": "batch", "status": "processed"}
    return {"id": name, "bytes": size, **fixed}


def error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "code": code, "param": None}}


def response_head(status: int, size: int, headers: dict[str, str]) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n{more}\r\n"
    return head.encode()


async def send(writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str]) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    writer.write(response_head(status, len(data), headers) + data)
    await writer.drain()


def main() -> None:
    """Serves with a fixed latency (first argument, seconds) until standard input closes; prints its address."""
    server = TeacherServer(latency_s=float(sys.argv[1]), keep_chats=False)
    server.start()
    print(server.url, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
