"""The `vllm` teacher: vLLM's engine inside the worker's own process, fed continuously, pictures passed as arrays."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import threading
import uuid
from collections.abc import Coroutine
from typing import Any, Literal

from PIL import Image

from schemas.caption import Usage
from stages.base import WorkerLost
from stages.teachers.chat import TeacherSetupError, redact
from stages.teachers.config import TeacherConfig
from stages.teachers.judge import judge
from stages.teachers.protocol import Reply, Teacher, TeacherRequest
from stages.teachers.weights import warm

log = logging.getLogger("perceive.teachers")

_STOP_TIMEOUT_S = 20.0
_INSTALL = "the vllm teacher needs the extra [vllm]: pip install 'perceive-engine[vllm]'"


class EngineDied(WorkerLost):
    """vLLM's engine is gone; the worker has to be started anew."""


class EngineTeacher(Teacher):
    """One `AsyncLLM` a process. Its scheduler batches whatever is in flight; there is no batch to drain.

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
        self._host: _Host | None = None
        self._slots: asyncio.Semaphore

    async def start(self) -> None:
        """Loads the weights, or joins the engine that another stage of this process has loaded.

        Raises `TeacherSetupError` when the engine does not come up in `start_timeout_s`.
        """
        self._slots = asyncio.Semaphore(self._config.limits.in_flight)
        self._host = await asyncio.to_thread(_join, self._vllm, self.arguments(), self._config.engine.start_timeout_s)

    async def stop(self) -> None:
        if self._host is not None:
            await asyncio.to_thread(_leave, self._host)
            self._host = None

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
                    return await self._on_host(self._ask(request))
            except TimeoutError:
                return Reply(outcome="unavailable", message=f"no reply within {self._config.limits.timeout_s:g} s")
            except self._vllm.EngineDeadError as error:
                raise EngineDied(f"the vLLM engine of {self.model} died: {redact(str(error))[:300]}") from error
            except (self._vllm.VLLMError, ValueError) as error:
                # What the engine refuses before it starts (too long a prompt, too many pictures) or gives up alone.
                return Reply(outcome="unavailable", message=redact(str(error))[:300])

    async def _on_host(self, asking: Coroutine[Any, Any, Reply]) -> Reply:
        """Runs on the engine's own loop; the loops of several stages may wait for it at a time."""
        assert self._host is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking, self._host.loop))

    async def _ask(self, request: TeacherRequest) -> Reply:
        assert self._host is not None
        engine = self._host.engine
        tokenizer = engine.get_tokenizer()
        prompt = tokenizer.apply_chat_template(_turns(request), tokenize=False, add_generation_prompt=True)
        images = [Image.fromarray(p.pixels) for m in request.messages for p in m.pictures if p.pixels is not None]
        inputs = {"prompt": prompt} | ({"multi_modal_data": {"image": images}} if images else {})
        last: Any = None
        async for output in engine.generate(inputs, self._sampling(request), request_id=uuid.uuid4().hex):
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


class _Host:
    """A loaded engine on a loop of its own, and how many teachers use it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.users = 0
        self.engine: Any = None
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="vllm-engine", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """The result of a coroutine on the engine's loop. Raises `TimeoutError`."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)


# One engine a process: the stages of all tasks and languages share a worker, and weights fit a GPU once.
_HOSTS: dict[str, _Host] = {}
_JOINING = threading.Lock()


def _join(vllm: _Names, arguments: dict[str, Any], seconds: float) -> _Host:
    name = json.dumps(arguments, sort_keys=True, default=str)
    with _JOINING:
        if name not in _HOSTS:
            host = _Host(name)
            try:
                warm(arguments["model"], arguments["revision"])
                host.engine = host.run(_load_engine(vllm, arguments), seconds)
            except TimeoutError as error:
                raise TeacherSetupError(f"vLLM did not load {arguments['model']} within {seconds:g} s") from error
            except (OSError, ValueError, RuntimeError) as error:
                raise TeacherSetupError(f"vLLM cannot load {arguments['model']}: {redact(str(error))}") from error
            _HOSTS[name] = host
        _HOSTS[name].users += 1
        return _HOSTS[name]


async def _load_engine(vllm: _Names, arguments: dict[str, Any]) -> Any:
    return vllm.AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**arguments))


def _leave(host: _Host) -> None:
    with _JOINING:
        host.users -= 1
        if host.users:
            return
        del _HOSTS[host.name]
        try:
            host.run(_shut_down(host.engine), _STOP_TIMEOUT_S)
        except TimeoutError:
            log.warning("vLLM has not shut down within %g s; it ends with this process", _STOP_TIMEOUT_S)
        finally:
            host.loop.call_soon_threadsafe(host.loop.stop)


async def _shut_down(engine: Any) -> None:
    engine.shutdown()


class _Names:
    """The parts of vLLM that are used, imported where a worker needs them and nowhere else."""

    def __init__(self) -> None:
        sampling = importlib.import_module("vllm.sampling_params")
        self.SamplingParams = sampling.SamplingParams
        self.StructuredOutputsParams = sampling.StructuredOutputsParams
        self.RequestOutputKind = sampling.RequestOutputKind
        self.AsyncEngineArgs = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
        self.AsyncLLM = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
        self.VLLMError = importlib.import_module("vllm.exceptions").VLLMError
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
