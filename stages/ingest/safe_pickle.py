"""Pickles that datasets are published in, read without running anything they name.

Only plain containers, numbers, text and numpy arrays come out. Classes of helper modules that a release has pickled
along (`utils`) become inert objects; any other name is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from stages.ingest.base import SourceError

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_INERT_MODULES = ("utils", "dataset", "dataloader")


class Inert:
    """Stands for an object whose class is not ours to load; its state is kept as a plain value."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _array(subtype: Any, shape: Any, kind: Any) -> np.ndarray[Any, Any]:
    """What numpy's pickles call first: an empty array, whatever the arguments say."""
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_SAFE: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): Inert,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("_codecs", "encode"): _encoded,
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module.split(".")[0] in _INERT_MODULES:
            return Inert
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return Inert(pid)


def load(data: bytes, path: str) -> Any:
    """The value of a pickle (Python 2 or 3), or of a `torch.save` file, old or new. Raises `SourceError`."""
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                name = next(item for item in archive.namelist() if item.endswith("data.pkl"))
                data = archive.read(name)
        stream = io.BytesIO(data)
        value = _one(stream)
        if value == _TORCH_MAGIC:
            _one(stream), _one(stream)  # the protocol version and the machine's facts
            value = _one(stream)
        return value
    except Exception as error:
        # The unpickler calls what the bytes say, on whatever they say; anything may come out of a damaged file.
        raise SourceError(f"{path}: no pickle that can be read safely: {type(error).__name__}: {error}") from error


def _one(stream: io.BytesIO) -> Any:
    return _Restricted(stream, encoding="latin1").load()
