"""Compiling, with the part of it that needs no accelerator: what becomes one graph, when, and at which sizes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForText2Image

from app.errors import DeviceLostError
from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.networks.graphs import WarmGraphs, compiled_networks
from app.pipelines.networks.lean import lean_text_encoding, make_lean
from app.pipelines.networks.operators import Operators
from app.pipelines.networks.plain import Networks, plain_networks


class Compiler:
    """Doubles what it is given, counts its calls, and fails at a layout that it has not compiled for."""

    def __init__(self) -> None:
        self.calls = 0
        self.strides: set[tuple[torch.Size, tuple[int, ...]]] = set()

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.strides.add((tensor.shape, tensor.stride()))
        return tensor * 2


def plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def test_a_size_is_compiled_and_recorded_when_it_first_comes_and_none_after_the_warm_up() -> None:
    compiler = Compiler()
    warm = WarmGraphs(lambda _: compiler, limit=64, check=lambda: None)
    graphs = warm.compiled("unet", plain)
    graphs(torch.ones(1, 4, 8, 8))
    recorded = compiler.calls
    assert recorded > 2, "the first compiles, the second records"
    graphs(torch.ones(1, 4, 8, 8))
    assert compiler.calls == recorded + 1
    warm.stop_compiling()
    assert torch.equal(graphs(torch.ones(2, 4, 8, 8)), torch.full((2, 4, 8, 8), 2.0))
    assert compiler.calls == recorded + 1
    graphs(torch.ones(1, 4, 8, 8))
    assert compiler.calls == recorded + 2


def test_a_tensor_that_lies_in_memory_in_another_order_needs_no_graph_of_its_own() -> None:
    compiler = Compiler()
    warm = WarmGraphs(lambda _: compiler, limit=64, check=lambda: None)
    graphs = warm.compiled("unet", plain)
    graphs(torch.ones(1, 4, 8, 8))
    warm.stop_compiling()
    graphs(torch.ones(1, 4, 8, 8).contiguous(memory_format=torch.channels_last))
    assert len(compiler.strides) == 1


def test_every_network_is_one_graph_for_torch_compile(tiny_folder: Path) -> None:
    """With a backend that compiles nothing: what breaks a graph breaks it on every device."""
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_folder, variant="fp16", dtype=torch.float32)
    plain = lean_networks(pipe)

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(function, backend="eager", fullgraph=True, dynamic=False)
        return compiled

    networks = compiled_networks(plain, lambda: None, compile_function=compile_function)
    ids = torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long)
    latents, pixels = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 64, 64)
    projection = pipe.text_encoder_2.config.projection_dim
    inputs = (torch.tensor(999.0), torch.randn(2, 77, pipe.unet.config.cross_attention_dim), torch.randn(2, projection))
    time_ids = torch.zeros(2, 6)
    with torch.inference_mode():
        for compiled, other in zip(networks.encode_text, plain.encode_text, strict=True):
            assert all(torch.equal(one, two) for one, two in zip(compiled(ids), other(ids), strict=True))
        assert torch.equal(
            networks.predict_noise(latents, *inputs, time_ids), plain.predict_noise(latents, *inputs, time_ids)
        )
        assert torch.equal(networks.encode(pixels), plain.encode(pixels))
        assert torch.equal(networks.decode(latents), plain.decode(latents))
    networks.stop_compiling()


def lean_networks(pipe: Any) -> Networks:
    """The networks as accelerators compute them."""
    operators = Operators()
    make_lean(pipe.unet, pipe.vae, operators)
    encoders = ((pipe.text_encoder, False), (pipe.text_encoder_2, True))
    return replace(
        plain_networks(pipe),
        encode_text=tuple(lean_text_encoding(encoder, operators, pooled=pooled) for encoder, pooled in encoders),
    )


class Failing:
    """Compiles nothing."""

    def __init__(self, error: Exception) -> None:
        self.calls = 0
        self.error = error

    def __call__(self, *_: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("ERR00100 PTA call acl api failed"), NotImplementedError(), MemoryError(), KeyError("x")]
)
def test_a_size_that_cannot_be_compiled_works_without_a_graph_and_is_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Failing(error)
    checks: list[None] = []
    warm = WarmGraphs(lambda _: compiler, limit=64, check=lambda: checks.append(None))
    graphs = warm.compiled("unet", plain)
    for _ in range(2):
        assert torch.equal(graphs(torch.ones(1, 4, 8, 8)), torch.full((1, 4, 8, 8), 2.0))
    assert (compiler.calls, len(checks), warm.count) == (1, 1, 0)
    assert caplog.text.count("unet at 1x4x8x8 works without a graph") == 1


def test_a_device_that_is_lost_while_it_compiles_is_not_used_any_more() -> None:
    def lost() -> None:
        raise DeviceLostError

    warm = WarmGraphs(lambda _: Failing(RuntimeError("error code is 507015")), limit=64, check=lost)
    with pytest.raises(DeviceLostError):
        warm.compiled("unet", plain)(torch.ones(1, 4, 8, 8))


def test_sizes_beyond_the_limit_work_without_a_graph_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    compiler = Compiler()
    warm = WarmGraphs(lambda _: compiler, limit=2, check=lambda: None)
    graphs = warm.compiled("unet", plain)
    for pictures in (1, 2, 3, 3):
        assert torch.equal(graphs(torch.ones(pictures, 4)), torch.full((pictures, 4), 2.0))
    assert {shape for shape, _ in compiler.strides} == {torch.Size((1, 4)), torch.Size((2, 4))}
    assert caplog.text.count("unet has 2 graphs, which is the limit: 3x4 works without") == 1
    assert warm.count == 2


def test_the_limit_of_sizes_is_the_service_s_own_not_torch_s() -> None:
    """torch.compile's is 8."""
    compiled: list[Any] = []

    def backend(graph: Any, _: object) -> Any:
        compiled.append(graph)
        return graph.forward

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        made: Callable[..., Any] = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
        return made

    warm = WarmGraphs(compile_function, limit=64, check=lambda: None)
    graphs = warm.compiled("unet", plain)
    for pictures in range(1, 12):
        graphs(torch.ones(pictures, 4))
    assert warm.count == len(compiled) == 11


@pytest.mark.long
@pytest.mark.only_long
def test_only_what_a_picture_depends_on_is_an_input_of_a_graph(tiny_folder: Path) -> None:
    """A graph copies its inputs before each call, and leaves weights where they are."""
    inputs: list[list[str]] = []

    def backend(graph: Any, _: object) -> Any:
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        moving = [node for node in places if "_dynamo_static_input_type" not in node.meta.get("tensor_dict", {})]
        inputs.append([node.name.strip("_").removeprefix("l_") for node in moving])
        return graph.forward

    pipe = AutoPipelineForText2Image.from_pretrained(tiny_folder, variant="fp16", dtype=torch.float32)
    networks = lean_networks(pipe)
    projection = pipe.text_encoder_2.config.projection_dim
    conditions = (torch.tensor(1.0), torch.ones(1, 77, pipe.unet.config.cross_attention_dim), torch.ones(1, projection))
    calls: list[tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = [
        (networks.encode_text[0], (torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long),)),
        (networks.encode_text[1], (torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long),)),
        (networks.predict_noise, (torch.ones(1, 4, 8, 8), *conditions, torch.zeros(1, 6))),
        (networks.encode, (torch.ones(1, 3, 64, 64),)),
        (networks.decode, (torch.ones(1, 4, 8, 8),)),
    ]
    with torch.inference_mode():
        for network, tensors in calls:
            torch.compile(network, backend=backend, fullgraph=True, dynamic=False)(*tensors)
    text, unet = ["ids"], ["latents", "timestep", "pooled", "time_ids", "embeds"]
    assert inputs == [text, text, unet, ["pixels"], ["latents"]]


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Any:
    yield
    torch._dynamo.reset()  # noqa: SLF001 - documented
