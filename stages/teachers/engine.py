"""The `vllm` teacher: vLLM's engine inside the worker's own process, fed continuously, pictures passed as arrays."""

from __future__ import annotations

import asyncio
import importlib
import uuid
from typing import Any, Literal

from PIL import Image

from schemas.caption import Usage
from stages.teachers.chat import TeacherSetupError, redact
from stages.teachers.config import TeacherConfig
from stages.teachers.judge import judge
from stages.teachers.protocol import Reply, Teacher, TeacherRequest

_INSTALL = "the vllm teacher needs the extra [vllm]: pip install 'perceive-engine[vllm]'"


class EngineDied(Exception):
    """vLLM's engine is gone; the worker has to be started anew."""


class EngineTeacher(Teacher):
    """One `AsyncLLM` a worker. Its scheduler batches whatever is in flight; there is no batch to drain.

    The prompt is made with the model's own chat template and the pictures go in as arrays. Answers are constrained by
    xgrammar with white space outside strings switched off (measured: with it on a reply costs 1.7 times the tokens).
    An engine that dies fails every request at once with `EngineDied`, so that the worker is replaced and nothing hangs.
    """

    name = "vllm"
    billed = True
    sees: Literal["encoded", "pixels", "subject"] = "pixels"

    def __init__(self, config: TeacherConfig) -> None:
        self._config = config
        self.model = config.identity
        self._vllm = _load()
        self._engine: Any = None
        self._slots: asyncio.Semaphore

    async def start(self) -> None:
        """Loads the weights. Raises `TeacherSetupError` when the engine does not come up in `start_timeout_s`."""
        self._slots = asyncio.Semaphore(self._config.limits.in_flight)
        seconds = self._config.engine.start_timeout_s
        try:
            async with asyncio.timeout(seconds):
                # Loading blocks for minutes; in a thread the time-out can speak.
                arguments = self._vllm.AsyncEngineArgs(**self.arguments())
                self._engine = await asyncio.to_thread(self._vllm.AsyncLLM.from_engine_args, arguments)
                await self._engine.get_tokenizer()
        except TimeoutError as error:
            raise TeacherSetupError(f"vLLM did not load {self.model} within {seconds:g} s") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise TeacherSetupError(f"vLLM cannot load {self.model}: {redact(str(error))}") from error

    async def stop(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def arguments(self) -> dict[str, Any]:
        """The engine's arguments; `teacher.engine.options` go last."""
        engine = self._config.engine
        return {
            "model": self._config.model,
            "revision": self._config.revision,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "max_model_len": engine.max_model_len,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "dtype": engine.dtype,
            "limit_mm_per_prompt": {"image": 16},
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            **engine.options,
        }

    async def ask(self, request: TeacherRequest) -> Reply:
        async with self._slots:
            try:
                async with asyncio.timeout(self._config.limits.timeout_s):
                    return await self._ask(request)
            except TimeoutError:
                return Reply(outcome="unavailable", message=f"no reply within {self._config.limits.timeout_s:g} s")
            except self._vllm.EngineDeadError as error:
                raise EngineDied(f"the vLLM engine of {self.model} died: {redact(str(error))[:300]}") from error
            except ValueError as error:
                # What the engine refuses before it starts: too long a prompt, too many pictures.
                return Reply(outcome="unavailable", message=redact(str(error))[:300])

    async def _ask(self, request: TeacherRequest) -> Reply:
        tokenizer = await self._engine.get_tokenizer()
        prompt = tokenizer.apply_chat_template(_turns(request), tokenize=False, add_generation_prompt=True)
        images = [Image.fromarray(p.pixels) for m in request.messages for p in m.pictures if p.pixels is not None]
        inputs = {"prompt": prompt} | ({"multi_modal_data": {"image": images}} if images else {})
        last: Any = None
        async for output in self._engine.generate(inputs, self._sampling(request), request_id=uuid.uuid4().hex):
            last = output
        if last is None or not last.outputs:
            return Reply(outcome="unavailable", message="the engine gave no output")
        done = last.outputs[0]
        usage = Usage(prompt_tokens=len(last.prompt_token_ids or ()), completion_tokens=len(done.token_ids))
        return judge(request, done.text, done.finish_reason, None, usage)

    def _sampling(self, request: TeacherRequest) -> Any:
        decoding = request.decoding
        structured = None
        if self._config.capabilities.structured != "none":
            structured = self._vllm.StructuredOutputsParams(json=request.schema)
        return self._vllm.SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=decoding.seed,
            max_tokens=request.max_tokens,
            structured_outputs=structured,
            output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
        )


class _Names:
    """The parts of vLLM that are used, imported where a worker needs them and nowhere else."""

    def __init__(self) -> None:
        sampling = importlib.import_module("vllm.sampling_params")
        self.SamplingParams = sampling.SamplingParams
        self.StructuredOutputsParams = sampling.StructuredOutputsParams
        self.RequestOutputKind = sampling.RequestOutputKind
        self.AsyncEngineArgs = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
        self.AsyncLLM = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
        self.EngineDeadError = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError


def _load() -> _Names:
    try:
        return _Names()
    except ImportError as error:
        raise TeacherSetupError(f"{_INSTALL} ({error})") from error


def _turns(request: TeacherRequest) -> list[dict[str, Any]]:
    """The conversation for the model's chat template: pictures by place, text as text."""
    return [
        {
            "role": message.role,
            "content": [*({"type": "image"} for _ in message.pictures), {"type": "text", "text": message.text}],
        }
        for message in request.messages
    ]
