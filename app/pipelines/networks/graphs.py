"""Graphs that a compiler makes of the networks, only for the sizes of the warm-up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.networks.plain import Networks

_GRAPHS = 256
"""Limit of the sizes that can have graphs."""

_CALLS_UNTIL_RECORDED = 2
"""Calls of a compiled function until its CUDA graph exists: the first compiles and runs without a graph, the second
records it (torch/_inductor/cudagraph_trees.py)."""

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Compiles a function of tensors. The result compiles at each new size, when it is called."""


class WarmGraphs:
    """Compiles functions to use graphs at the sizes that come before `stop_compiling`, and no graphs at other sizes.

    A compiled function compiles when it gets a new size, which takes from seconds to minutes, and records its graph at
    the next call. No request may wait for either. For the device thread.
    """

    def __init__(self, compile_function: Compile) -> None:
        torch._dynamo.config.recompile_limit = _GRAPHS  # noqa: SLF001 - documented, and 8 otherwise
        self._compile = compile_function
        self._compiling = True

    def compiled(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        compiled = self._compile(plain)
        warm_sizes: set[tuple[torch.Size, ...]] = set()

        def call(*tensors: Tensor) -> Any:
            sizes = tuple(tensor.shape for tensor in tensors)
            if sizes not in warm_sizes and not self._compiling:
                return plain(*tensors)
            laid_out = [tensor.contiguous() for tensor in tensors]  # a graph is made for one layout
            if sizes not in warm_sizes:
                warm_sizes.add(sizes)
                for _ in range(_CALLS_UNTIL_RECORDED):
                    compiled(*laid_out)
            return compiled(*laid_out)

        return call

    def stop_compiling(self) -> None:
        self._compiling = False


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


def compiled_networks(plain: Networks, device: torch.device, *, compile_function: Compile = cuda_graphs) -> Networks:
    """Return the networks with graphs for all of them."""
    with torch.inference_mode():
        for encode in plain.encode_text:
            # An encoder of transformers takes a lock at its first call, which cannot be compiled.
            encode(torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long, device=device))
    graphs = WarmGraphs(compile_function)
    return Networks(
        encode_text=tuple(map(graphs.compiled, plain.encode_text)),
        predict_noise=graphs.compiled(plain.predict_noise),
        encode=graphs.compiled(plain.encode),
        decode=graphs.compiled(plain.decode),
        stop_compiling=graphs.stop_compiling,
    )


def with_npu_graphs(plain: Networks, compile_function: Compile) -> Networks:
    """Return the networks with NPU graphs for the UNet."""
    graphs = WarmGraphs(compile_function)
    return replace(plain, predict_noise=graphs.compiled(plain.predict_noise), stop_compiling=graphs.stop_compiling)
