"""NPU graphs: torch_npu's `npugraph_ex` records a network once, and starts it with one launch. For A2 and A3.

Source: docs/zh/npugraph_ex of Ascend/torchair, and the package torch_npu 2.13.
"""

import hashlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app import pipelines
from app.errors import first_line
from app.pipelines.npu.setup import torch_npu

_log = logging.getLogger(__name__)

CAPTURE_LIMIT = 64
"""Graphs of one network. npugraph_ex drops all of a network's graphs beyond its limit, whose default is this."""

_OPTIONS: Mapping[str, Any] = {
    "capture_limit": CAPTURE_LIMIT,
    "clone_output": True,  # else the next call overwrites the result of this one
    "frozen_parameter": True,  # weights stay where they are, so a call need not look
}

_PACKAGES = ("torch", "torch_npu", "diffusers", "transformers")


def compile_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors into graphs, one for each size.

    torch.compile's default backend was 6.5 times slower on a 910B (sgl-project/sglang#20687).
    """
    return torch.compile(function, backend="npugraph_ex", fullgraph=True, dynamic=False, options=dict(_OPTIONS))


def cached_graphs(folder: Path, facts: Mapping[str, object]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a function like `compile_graphs` that keeps what it compiles in a folder, for the next start.

    npugraph_ex loads what it finds there without a check. So each graph has a folder whose name depends on all that the
    graph depends on: the service's code, the libraries, and `facts`, which are the model, its number formats, the chip
    and the settings. The recording itself is made at every start.
    """
    versions = {name: _version(name) for name in _PACKAGES}
    code = [path.read_bytes() for path in sorted(Path(inspect.getfile(pipelines)).parent.rglob("*.py"))]
    key = hashlib.sha256(repr((sorted(facts.items()), versions)).encode() + b"".join(code)).hexdigest()[:32]
    numbers = iter(range(1_000_000))

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        number = next(numbers)  # networks are compiled in the same order at every start
        by_size: dict[Any, Callable[..., Any]] = {}

        def call(*tensors: torch.Tensor) -> Any:
            sizes = tuple((*tensor.shape, str(tensor.dtype)) for tensor in tensors)
            if sizes not in by_size:
                name = hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]
                by_size[sizes] = _cached(function, folder / key / f"{number}-{name}")
            return by_size[sizes](*tensors)

        return call

    return compile_function


def _cached(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return the function compiled for one size, from the folder or into it; without it if it cannot be used."""
    try:
        for path in (folder.parent, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        compiled: Callable[..., Any] = torch_npu().npu.npugraph_ex.inference.cache_compile(
            _Method(function).call, dynamic=False, cache_dir=str(folder), options=dict(_OPTIONS)
        )
    except Exception as error:  # noqa: BLE001 - a cache is never a reason not to start
        _log.warning("graphs are not cached in %s: %s", folder, first_line(error))
        return compile_graphs(function)
    return compiled


class _Method(nn.Module):
    """A function as npugraph_ex caches it: a method of a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def call(self, *tensors: torch.Tensor) -> Any:
        return self._function(*tensors)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
