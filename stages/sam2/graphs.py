"""Work on tensors of recurring shapes, replayed as a CUDA graph: one launch instead of hundreds.

Hundreds of small launches from Python leave the device waiting, the more so where other threads want the interpreter.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("perceive.sam2")

Key = tuple[Any, ...]
_WARM_UPS = 2


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: Any


class Replayed:
    """`work(*tensors)`, captured once its shapes have come `after` times and replayed from then on.

    What a replay returns is overwritten by the next one of the same shapes: use it up, or copy it. The first
    `resident` tensors are read where they lie; a call in which they lie elsewhere counts as another shape. At most
    `keep` graphs are held, since each holds its own memory. On a CPU it is `work` itself. Weights must not be cast
    by an autocast that caches.
    """

    def __init__(self, work: Callable[..., Any], resident: int = 0, after: int = 3, keep: int = 4) -> None:
        self.work = work
        self._resident, self._after, self._keep = resident, after, keep
        self._seen: dict[Key, int] = {}
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()

    def __call__(self, *tensors: Tensor) -> Any:
        if not tensors[0].is_cuda:
            return self.work(*tensors)
        key: Key = (
            tuple((tuple(t.shape), t.dtype) for t in tensors),
            tuple(t.data_ptr() for t in tensors[: self._resident]),
        )
        captured = self._graphs.get(key)
        if captured is None:
            if len(self._seen) > 64:
                self._seen.clear()
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] < self._after:
                return self.work(*tensors)
            captured = self._capture(key, tensors)
            if captured is None:
                return self.work(*tensors)
        self._graphs.move_to_end(key)
        moved = captured.inputs[self._resident :]
        if moved:
            torch._foreach_copy_(list(moved), list(tensors[self._resident :]))
        captured.graph.replay()
        return captured.outputs

    def _capture(self, key: Key, tensors: tuple[Tensor, ...]) -> _Graph | None:
        """The graph of these shapes; None, and never tried again, where the work cannot be captured."""
        while len(self._graphs) >= self._keep:
            self._graphs.popitem(last=False)
        still = tensors[: self._resident]
        inputs = (*still, *(t.clone(memory_format=torch.contiguous_format) for t in tensors[self._resident :]))
        for _ in range(_WARM_UPS):  # what is compiled for this layout must be so before the capture
            self.work(*inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads go on using the device
                outputs = self.work(*inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("not captured as a CUDA graph, so launched singly: %s", str(error).splitlines()[0])
            self._after = sys.maxsize
            return None
        self._graphs[key] = _Graph(graph, inputs, outputs)
        return self._graphs[key]
