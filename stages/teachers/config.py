"""How teachers are configured."""

from __future__ import annotations

import json
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from schemas.base import Record
from stages.teachers.protocol import Decoding, Detail

Backend = Literal["measured", "openai", "openai_batch", "vllm"]


class LimitsConfig(Record):
    """What one worker may do at once; the runner divides minute rates among workers.

    `in_flight` is requests at a time; `requests_per_minute` and `tokens_per_minute` null means that only the server's
    own rate-limit headers slow the client down. `timeout_s` is of one try, `tries` how often an unavailable server is
    asked, `give_up_s` the longest wait between tries that a server may ask for.
    """

    in_flight: int = Field(default=64, ge=1, le=4096)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    tries: int = Field(default=6, ge=1, le=50)
    first_wait_s: float = Field(default=0.5, ge=0)
    longest_wait_s: float = Field(default=60.0, gt=0)
    give_up_s: float = Field(default=600.0, gt=0)

    def shared_by(self, workers: int) -> LimitsConfig:
        """The slice of one of `workers` equal workers: minute quotas are divided, what is in flight is each one's."""
        quotas = {
            name: max(1, limit // workers)
            for name in ("requests_per_minute", "tokens_per_minute")
            if (limit := getattr(self, name)) is not None
        }
        return self.model_copy(update=quotas)


class CapabilitiesConfig(Record):
    """What the endpoint understands. Nothing here is guessed from the model's name.

    `structured`: `json_schema` (OpenAI's `response_format`; vLLM and SGLang too), `structured_outputs` (vLLM's own
    field), or `none` (the prompt states the shape, the validator judges). `patterns` false strips `pattern` and length
    bounds from the schema that is sent, for endpoints that refuse them. `token_field` is the name of the token
    limit. `extra_body` is merged into every request and is part of its identity.
    """

    structured: Literal["json_schema", "structured_outputs", "none"] = "json_schema"
    patterns: bool = True
    strict: bool = True
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_completion_tokens"
    image_detail: bool = True
    seed: bool = True
    sampling: bool = True
    extra_body: dict[str, Any] = {}


class RetryConfig(Record):
    """How often each outcome is answered with another request before the row fails.

    A truncated answer is asked again with `limit_factor` times the tokens, an invalid one with a turn that shows the
    error, a refused one through `other_view`.
    """

    truncated: int = Field(default=1, ge=0, le=3)
    invalid: int = Field(default=1, ge=0, le=3)
    refused: int = Field(default=1, ge=0, le=1)
    limit_factor: float = Field(default=2.0, gt=1.0, le=8.0)
    other_view: str = "full_mask"


class BatchConfig(Record):
    """The Batch API: the provider's limits for one job, and how it is waited for."""

    max_requests: int = Field(default=50_000, ge=1, le=50_000)
    max_bytes: int = Field(default=190_000_000, ge=1_000)
    wait_s: float = Field(default=15.0, gt=0)
    poll_s: float = Field(default=30.0, gt=0)
    window: Literal["24h"] = "24h"

    @property
    def longest_s(self) -> float:
        """Seconds within which a job is over: the provider's window, and an hour until that is noticed."""
        return (int(self.window.removesuffix("h")) + 1) * 3600.0


class EngineConfig(Record):
    """vLLM inside this process. `options` go to its `AsyncEngineArgs` as they are."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    num_gpus: float = Field(default=1.0, ge=0)
    max_model_len: int | None = Field(default=8192, ge=256)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    dtype: str = "auto"
    start_timeout_s: float = Field(default=1800.0, gt=0)
    options: dict[str, Any] = {}


class TeacherConfig(Record):
    """One teacher. `model` is the name that the endpoint knows, or for `vllm` a Hugging Face id or a folder.

    The API key is read from the environment variable `api_key_env` when a client is made, and goes nowhere else. A
    teacher is the same teacher (and its ledger entries are good) wherever it runs: `backend`, `base_url`, limits and
    retries may change without a row being made again; `model`, `revision`, `decoding`, `detail` and what
    `capabilities` sends may not.
    """

    backend: Backend = "measured"
    model: str | None = None
    revision: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    detail: Detail = "auto"
    decoding: Decoding = Decoding()
    limits: LimitsConfig = LimitsConfig()
    capabilities: CapabilitiesConfig = CapabilitiesConfig()
    retry: RetryConfig = RetryConfig()
    batch: BatchConfig = BatchConfig()
    engine: EngineConfig = EngineConfig()
    prices: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.backend != "measured" and not self.model:
            raise ValueError(f"teacher.model is missing: backend {self.backend} needs the name of a model")
        return self

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "teacher.base_url holds credentials or a query, which would be written beside the run: put the key "
                "into an environment variable and name that in teacher.api_key_env"
            )
        return url

    @property
    def identity(self) -> str:
        """The model as rows name it; with its revision where one is pinned."""
        if self.backend == "measured":
            return "measured"
        return f"{self.model}@{self.revision}" if self.revision else str(self.model)

    def request_options(self) -> str:
        """What is asked beside the conversation, as JSON for a request's identity: the endpoint's own fields.

        Of `capabilities` it has what changes the request against the defaults and could change the answer; so a ledger
        of an endpoint with the defaults is good for one that names the token limit otherwise, and an answer that was
        bought without a schema does not stand for one that is asked with it.
        """
        can, own = self.capabilities, self.capabilities.extra_body
        changes = {
            "structured": can.structured != "json_schema",
            "patterns": not can.patterns and can.structured != "none",
            "strict": not can.strict and can.structured == "json_schema",
            "image_detail": not can.image_detail and self.detail != "auto",
            "seed": not can.seed and self.decoding.seed is not None,
            "sampling": not can.sampling,
        }
        changed = {name: getattr(can, name) for name, differs in changes.items() if differs}
        return json.dumps({"capabilities": changed, "extra_body": own} if changed else own, sort_keys=True)

    def settings(self) -> dict[str, Any]:
        """What an answer depends on."""
        if self.backend == "measured":
            return {"model": "measured"}
        sent = self.capabilities.model_dump(mode="json", exclude={"token_field"})
        return {
            "model": self.identity,
            "decoding": self.decoding.model_dump(mode="json"),
            "detail": self.detail,
            "capabilities": sent,
        }
