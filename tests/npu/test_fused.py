"""Fused operators: which are used on which chip, that they are checked, and that pictures stay the same."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import Mode
from app.pipelines.networks import operators as plain
from app.pipelines.npu.fused import FusedOperators, _fault, family_of, fused_operators
from app.settings import FUSED_OPERATORS
from tests.conftest import opened
from tests.npu.conftest import service_on_npu
from tests.npu.fused_kernels import KERNELS
from tests.npu.simulator import Npu
from tests.npu.test_service import load

DEVICE = torch.device("npu", 0)

KERNEL_OF = {
    "attention": "npu_fused_infer_attention_score",
    "group_norm_silu": "npu_group_norm_silu",
    "geglu": "npu_geglu",
    "gelu": "npu_gelu",
    "quick_gelu": "npu_fast_gelu",
    "add_layer_norm": "npu_add_layer_norm",
}


def found(npu: Npu, *dtypes: torch.dtype, wanted: Sequence[str] = FUSED_OPERATORS) -> FusedOperators:
    return fused_operators(wanted, npu.chip, DEVICE, dtypes or (torch.float16,))


@pytest.mark.parametrize(
    ("chip", "used"),
    [
        ("Ascend910B4", set(FUSED_OPERATORS)),
        ("Ascend910_9391", set(FUSED_OPERATORS)),
        ("Ascend310P3", set(FUSED_OPERATORS) - {"quick_gelu"}),
        ("Ascend910A", set()),
        ("Ascend950PR_9599", set()),
    ],
)
def test_each_chip_gets_the_operators_that_are_documented_for_it(npu: Npu, chip: str, used: set[str]) -> None:
    npu.chip = chip
    fused = found(npu)
    assert set(fused.used) == used
    assert set(fused.not_used) == set(FUSED_OPERATORS) - used
    assert family_of(chip) is not None or "none that is documented" in fused.not_used["geglu"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_they_compute_right_in_every_number_format_that_they_take(npu: Npu, dtype: torch.dtype) -> None:
    fused = found(npu, dtype)
    missing = {"attention"} if dtype is torch.float32 else set()
    assert set(fused.used) == set(FUSED_OPERATORS) - missing
    assert set(fused.not_used) == missing
    assert not missing or "does not take float32" in fused.not_used["attention"]


def test_only_those_that_are_wanted_are_used(npu: Npu) -> None:
    fused = found(npu, wanted=("geglu", "gelu"))
    assert tuple(fused.used) == ("geglu", "gelu")
    assert fused.operators.attention is plain.attention
    assert npu.calls["torch_npu.npu_group_norm_silu"] == 0


@pytest.mark.parametrize("name", FUSED_OPERATORS)
def test_an_operator_that_computes_something_else_is_not_used_and_is_logged_once(
    npu: Npu, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    npu.lies = {KERNEL_OF[name]}
    fused = found(npu)
    assert set(fused.used) == set(FUSED_OPERATORS) - {name}
    assert "deviates by" in fused.not_used[name]
    assert getattr(fused.operators, name) is getattr(plain, name)
    assert caplog.text.count(f"the fused operator {name} is not used") == 1


@pytest.mark.parametrize("name", FUSED_OPERATORS)
def test_an_operator_that_is_missing_is_not_used_and_costs_no_start(npu: Npu, name: str) -> None:
    npu.missing = {KERNEL_OF[name]}
    assert "is not supported on" in found(npu).not_used[name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("gelu", lambda x: F.gelu(x, approximate="tanh")),
        ("gelu", plain.quick_gelu),
        ("quick_gelu", plain.gelu),
        ("geglu", lambda x: x.chunk(2, dim=-1)[0] * F.gelu(x.chunk(2, dim=-1)[1], approximate="tanh")),
    ],
    ids=["tanh", "quick", "exact", "geglu by tanh"],
)
def test_a_similar_function_is_told_from_the_right_one(
    npu: Npu, name: str, other: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> None:
    """torch_npu's operators approximate GELU by default."""
    del npu
    assert _fault(name, other, torch.device("cpu"), [dtype])
    assert not _fault(name, getattr(plain, name), torch.device("cpu"), [dtype])


def test_relu_is_no_gelu_in_bf16() -> None:
    assert _fault("gelu", torch.relu, torch.device("cpu"), [torch.bfloat16])


def test_an_operator_that_kills_the_device_ends_the_start(npu: Npu) -> None:
    npu.error = RuntimeError("NPU function error: AclrtSynchronizeStream, error code is 507015")
    with pytest.raises(Exception, match="AI Core"):
        found(npu)


# Arguments. The simulated kernels raise AssertionError for what the documentation does not allow.


@pytest.mark.parametrize("chip", ["Ascend910B4", "Ascend310P3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
@pytest.mark.parametrize(("width", "heads"), [(64, 4), (40, 4), (1280, 20), (2048, 2), (512, 1), (1040, 1)])
def test_attention_never_gets_arguments_that_it_does_not_take(
    npu: Npu, chip: str, dtype: torch.dtype, width: int, heads: int
) -> None:
    npu.chip = chip
    attention = found(npu, wanted=("attention",)).operators.attention
    tokens = torch.ones(2, 8, width, dtype=torch.float32).to(DEVICE, dtype)
    apart = torch.ones(2, 8, 3 * width, dtype=torch.float32).to(DEVICE, dtype)[..., :width]  # not contiguous
    for query in (tokens, apart):
        if dtype == torch.int32:
            with pytest.raises(RuntimeError):
                attention(query, tokens, tokens, heads)
        else:
            assert attention(query, tokens, tokens, heads).shape == tokens.shape


def test_a_causal_mask_is_only_there_for_clip_s_tokens(npu: Npu) -> None:
    attention = found(npu).operators.attention
    kernel = f"torch_npu.{KERNEL_OF['attention']}"
    for tokens, calls in ((77, 1), (64, 0)):
        npu.calls.clear()
        values = torch.randn(1, tokens, 128).to(DEVICE, torch.float16)
        made = attention(values, values, values, 2, is_causal=True).float().cpu()
        host = values.float().cpu()
        torch.testing.assert_close(made, plain.attention(host, host, host, 2, is_causal=True), atol=5e-3, rtol=5e-3)
        assert npu.calls[kernel] == calls


@pytest.mark.parametrize("chip", ["Ascend910B4", "Ascend310P3"])
@pytest.mark.parametrize("weights", [torch.float16, torch.float32, torch.bfloat16])
def test_norms_never_get_weights_that_they_do_not_take(npu: Npu, chip: str, weights: torch.dtype) -> None:
    npu.chip = chip
    operators = found(npu).operators
    group_norm, layer_norm = nn.GroupNorm(4, 16).to(DEVICE, weights), nn.LayerNorm(8).to(DEVICE, weights)
    x = torch.randn(2, 16, 4, 8).to(DEVICE, torch.float16)
    if weights is torch.bfloat16:  # torch refuses these, too
        with pytest.raises(RuntimeError):
            operators.group_norm_silu(group_norm, x)
    elif weights is torch.float16:
        assert operators.group_norm_silu(group_norm, x).shape == x.shape
        assert operators.add_layer_norm(layer_norm, x, x)[0].shape == x.shape


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_says_what_its_documentation_does_not_allow(npu: Npu, name: str) -> None:
    """fp64 and empty tensors are nobody's."""
    del npu
    wrong = torch.ones(1, 1, 3, dtype=torch.int64)
    more: dict[str, Any] = {}
    if name == "npu_group_norm_silu":
        more = {"weight": None, "bias": None, "group": 1}
    arguments = [wrong] * (3 if "attention" in name else 4 if "layer_norm" in name else 1)
    with pytest.raises(AssertionError):
        KERNELS[name].check("Ascend910B4", *arguments, **more)


# Pictures.


@pytest.mark.parametrize("chip", ["Ascend910B4", "Ascend310P3"])
def test_a_picture_is_the_same_with_and_without_fused_operators(npu: Npu, chip: str) -> None:
    npu.chip = chip
    made = []
    for operators in ("off", "auto"):
        with service_on_npu(dtype="fp16", fused_operators=operators, warm_up_sizes="64x64") as service:
            response = service.txt2img(width=64, height=64)
            assert response.status_code == 200, response.text
            made.append(np.asarray(opened(response.content), dtype=int))
        if operators == "off":
            assert not any(npu.calls[f"torch_npu.{kernel}"] for kernel in KERNELS)
    assert npu.calls["torch_npu.npu_add_layer_norm"] > 0
    assert np.abs(made[0] - made[1]).mean() < 0.5


def test_the_loader_reports_what_is_used_and_what_is_not(npu: Npu) -> None:
    npu.lies = {"npu_geglu"}
    loaded = load(dtype="fp16")
    assert set(loaded.fused_operators) == set(FUSED_OPERATORS) - {"geglu"}
    assert list(loaded.unused_operators) == ["geglu"]
    picture = Txt2ImgParams(prompt="a cat", seed=1, num_inference_steps=1, width=64, height=64)
    assert loaded.by_mode[Mode.TXT2IMG]([picture])
    assert load(dtype="fp16", fused_operators="off").unused_operators == {}
