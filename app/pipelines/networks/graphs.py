"""Graphs that a compiler makes of the networks, only for the sizes of the warm-up."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from app.errors import first_line
from app.pipelines.networks.plain import Networks

_log = logging.getLogger(__name__)

_CALLS_UNTIL_RECORDED = 2
"""Calls of a compiled function until its graph exists: the first compiles and runs without a graph, the second records
it (torch/_inductor/cudagraph_trees.py)."""

_RECOMPILE_LIMIT = 4096
"""torch.compile's own limit of sizes, which counts those of all networks with the same code."""

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Compiles a function of tensors. The result compiles at each new size, when it is called."""


class WarmGraphs:
    """Compiles functions to use graphs at the sizes that come before `stop_compiling`, and no graphs at other sizes.

    A compiled function compiles when it gets a new size, which takes from seconds to minutes, and records its graph at
    the next call. No request may wait for either. A size that cannot be compiled, or exceeds the `limit` of sizes of a
    function, works without a graph; that is logged. After a device error, `check` must find that the device still
    computes. For the device thread.
    """

    def __init__(self, compile_function: Compile, *, limit: int, check: Callable[[], None]) -> None:
        torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT  # noqa: SLF001 - documented, and 8 otherwise
        torch._dynamo.config.accumulated_recompile_limit = _RECOMPILE_LIMIT  # noqa: SLF001 - as above
        self._compile = compile_function
        self._compiling = True
        self._limit = limit
        self._check = check
        self.count = 0
        """The number of graphs."""

    def compiled(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that uses graphs. `name` is for the log."""
        compiled = self._compile(plain)
        with_graph: set[tuple[torch.Size, ...]] = set()
        without: set[tuple[torch.Size, ...]] = set()

        def call(*tensors: Tensor) -> Any:
            sizes = tuple(tensor.shape for tensor in tensors)
            if sizes not in with_graph and (not self._compiling or sizes in without):
                return plain(*tensors)
            laid_out = [tensor.contiguous() for tensor in tensors]  # a graph is made for one layout
            if sizes in with_graph:
                return compiled(*laid_out)
            if len(with_graph) == self._limit:
                without.add(sizes)
                _log.warning("%s has %d graphs, which is the limit: %s works without", name, self._limit, _text(sizes))
                return plain(*tensors)
            result = self._first(name, compiled, laid_out, sizes)
            if result is None:
                without.add(sizes)
                return plain(*tensors)
            with_graph.add(sizes)
            self.count += 1
            return result

        return call

    def _first(self, name: str, compiled: Callable[..., Any], tensors: list[Tensor], sizes: Any) -> Any:
        """Compile for a size, and return the result of a call with the graph; None if it cannot be compiled.

        Raises:
            DeviceLostError: The device does not compute any more.
        """
        try:
            for _ in range(_CALLS_UNTIL_RECORDED):
                compiled(*tensors)
            return compiled(*tensors)
        except Exception as error:  # noqa: BLE001 - compilers and devices raise anything
            _log.warning("%s at %s works without a graph: %s", name, _text(sizes), first_line(error))
        self._check()
        return None

    def stop_compiling(self) -> None:
        self._compiling = False
        _log.info("the networks have %d graphs", self.count)


def _text(sizes: tuple[torch.Size, ...]) -> str:
    return "x".join(map(str, sizes[0]))


def cuda_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors with inductor and CUDA graphs, one for each size.

    The next run of a graph overwrites its result in place, so each call returns a copy.
    """
    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def call(*tensors: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call] # torch types it so
        result = compiled(*tensors)
        return tuple(part.clone() for part in result) if isinstance(result, tuple) else result.clone()

    return call


def compiled_networks(
    plain: Networks, check: Callable[[], None], *, compile_function: Compile = cuda_graphs, limit: int = 64
) -> Networks:
    """Return the networks with graphs for all of them, up to `limit` for each."""
    graphs = WarmGraphs(compile_function, limit=limit, check=check)
    first, second = plain.encode_text
    return Networks(
        encode_text=(graphs.compiled("text encoder", first), graphs.compiled("text encoder 2", second)),
        predict_noise=graphs.compiled("unet", plain.predict_noise),
        encode=graphs.compiled("vae encoder", plain.encode),
        decode=graphs.compiled("vae decoder", plain.decode),
        stop_compiling=graphs.stop_compiling,
    )
