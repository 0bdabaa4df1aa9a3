"""Graphs that a compiler makes of the networks, at the sizes that come while the service warms up and at no others."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.networks.plain import Networks

_GRAPHS = 256
"""Sizes that there can be graphs for."""

_CALLS_UNTIL_RECORDED = 2
"""Calls of a compiled function after which its CUDA graph stands: the first compiles and runs without one, the second
records it (torch/_inductor/cudagraph_trees.py)."""


class WarmGraphs:
    """A function by graphs at the sizes that come until it is told to stop, and without graphs at all others.

    `compiled` compiles at every new size when it is called, which takes from seconds to minutes, and records its graph
    only when it is called again: no request may wait for either. On the device thread alone.
    """

    def __init__(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> None:
        torch._dynamo.config.recompile_limit = _GRAPHS  # noqa: SLF001 - documented, and 8 otherwise
        self._plain = plain
        self._compiled = compiled
        self._compiling = True
        self._sizes: set[tuple[torch.Size, ...]] = set()

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Call one or the other. Tensors may lie in memory in any order; graphs are made for one alone."""
        sizes = tuple(tensor.shape for tensor in tensors)
        if self._compiling and sizes not in self._sizes:
            self._sizes.add(sizes)
            for _ in range(_CALLS_UNTIL_RECORDED):
                self._compiled(*(tensor.contiguous() for tensor in tensors))
        if sizes not in self._sizes:
            return self._plain(*tensors)
        return self._compiled(*(tensor.contiguous() for tensor in tensors))

    def stop_compiling(self) -> None:
        """Compile nothing from now on."""
        self._compiling = False


def cuda_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors with inductor and CUDA graphs, for each size of its own.

    What a graph returns lies in the graph's own memory and is overwritten by its next run, so a copy is returned.
    """
    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def call(*tensors: torch.Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call] # torch types it so
        result = compiled(*tensors)
        return tuple(part.clone() for part in result) if isinstance(result, tuple) else result.clone()

    return call


Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes of a function of tensors one that is compiled, at each new size, when it is called."""


def compiled_networks(
    plain: Networks, device: torch.device, *, compile_function: Compile = cuda_graphs
) -> tuple[Networks, Callable[[], None]]:
    """Return the networks by graphs, and what to call when they are warm."""
    graphs: list[WarmGraphs] = []
    with torch.inference_mode():
        for encode in plain.encode_text:
            # At its first call an encoder of transformers takes a lock to prepare itself, which cannot be compiled.
            encode(torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long, device=device))

    def by_graphs(function: Callable[..., Any]) -> WarmGraphs:
        graphs.append(WarmGraphs(function, compile_function(function)))
        return graphs[-1]

    def stop_compiling() -> None:
        for graph in graphs:
            graph.stop_compiling()

    networks = Networks(
        encode_text=tuple(by_graphs(encode) for encode in plain.encode_text),
        predict_noise=by_graphs(plain.predict_noise),
        encode=by_graphs(plain.encode),
        decode=by_graphs(plain.decode),
    )
    return networks, stop_compiling


def with_npu_graphs(plain: Networks, compile_function: Compile) -> tuple[Networks, Callable[[], None]]:
    """Return the networks with the UNet by graphs of an NPU, and what to call when it is warm."""
    graphs = WarmGraphs(plain.predict_noise, compile_function(plain.predict_noise))
    return replace(plain, predict_noise=graphs), graphs.stop_compiling
