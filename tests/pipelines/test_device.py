from typing import Any

import pytest
import torch

from app.errors import DeviceLostError, DeviceUnavailableError
from app.pipelines.device import choose_dtype, choose_vae_dtype, open_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto finds the GPU first")
def test_auto_falls_to_the_cpu_where_there_is_nothing_else() -> None:
    assert open_device("auto").torch_device == CPU


def test_an_npu_without_torch_npu_is_a_clear_error() -> None:
    with pytest.raises(DeviceUnavailableError, match="torch_npu cannot be loaded"):
        open_device("npu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that must not be there")
def test_a_gpu_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"TURBO_DEVICE=cuda:1 is not available: 0 visible cuda devices"):
        open_device("cuda:1")


@pytest.mark.parametrize("name", ["auto", "cpu"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to be a build for CUDA that finds no GPU")
def test_a_build_for_cuda_that_finds_no_gpu_is_reported_with_the_smaller_build(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    open_device(name)
    assert "is built for CUDA 13.0, but CUDA finds no GPU here" in caplog.text
    assert "--torch-backend cpu" in caplog.text
    caplog.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # then device=cpu was chosen
    open_device("cpu")
    assert not caplog.text


def test_a_build_for_the_cpu_is_not_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    open_device("cpu")
    assert not caplog.text


LARGE, SMALL = 2_567_463_684, 7_308_260
"""Parameters of SDXL-Turbo's UNet, and of the demo model's."""


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CUDA, torch.float16),
        ("fp16", CPU, torch.float16),
        ("bf16", CUDA, torch.bfloat16),
        ("fp32", CPU, torch.float32),
    ],
)
def test_the_dtype_follows_the_setting_and_then_the_device(
    name: str, device: torch.device, expected: torch.dtype
) -> None:
    assert choose_dtype(name, device, parameters=LARGE)[0] is expected


@pytest.mark.parametrize(
    ("features", "parameters", "expected", "reason"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, LARGE, torch.bfloat16, "the processor has AMX"),
        ({"avx512_bf16": True, "amx_bf16": False}, LARGE, torch.bfloat16, "the processor has AVX512-BF16"),
        ({"avx512_bf16": True}, SMALL, torch.float32, "a UNet of 7.3 million parameters is too small"),
        ({"avx512_f": True, "avx512_bf16": False}, LARGE, torch.float32, "neither AMX nor AVX512-BF16"),
        ({"architecture": "aarch64", "bf16": True}, LARGE, torch.float32, "neither AMX nor AVX512-BF16"),
    ],
)
def test_on_a_cpu_auto_is_bf16_where_the_processor_and_the_model_gain_from_it_and_says_why(
    features: dict[str, Any],
    parameters: int,
    expected: torch.dtype,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    dtype, said = choose_dtype("auto", CPU, parameters=parameters)
    assert dtype is expected
    assert reason in said


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx512_vnni": True, "avx512_bf16": True}, torch.bfloat16), ({"avx_vnni": True}, torch.float32)],
)
def test_what_is_not_in_int8_is_in_the_fastest_format(
    features: dict[str, Any], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert choose_dtype("int8", CPU, parameters=SMALL)[0] is expected


@pytest.mark.parametrize(("device", "features"), [(CUDA, {"avx512_vnni": True}), (CPU, {"avx2": True})])
def test_int8_on_a_device_without_it_is_a_clear_error(
    device: torch.device, features: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    with pytest.raises(DeviceUnavailableError, match=r"int8 needs a CPU with AMX or AVX512-VNNI or AVX-VNNI\. Set"):
        choose_dtype("int8", device, parameters=LARGE)


@pytest.mark.parametrize(
    ("name", "dtype", "force_upcast", "expected"),
    [
        ("auto", torch.float16, True, torch.float32),
        ("auto", torch.float16, False, torch.float16),
        ("auto", torch.bfloat16, True, torch.bfloat16),
        ("auto", torch.float32, True, torch.float32),
        ("fp32", torch.float16, False, torch.float32),
        ("bf16", torch.float16, True, torch.bfloat16),
        ("fp16", torch.float16, True, torch.float16),
    ],
)
def test_the_vae_s_dtype_follows_the_setting_and_then_its_config(
    name: str, dtype: torch.dtype, *, force_upcast: bool, expected: torch.dtype
) -> None:
    assert choose_vae_dtype(name, dtype, force_upcast=force_upcast) is expected


def test_a_sound_device_passes_check_after_check() -> None:
    device = open_device("cpu")
    for _ in range(2500):  # more than there are different values
        device.check()
    device.free_memory()
    device.synchronize()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_gpu_rounds_fp32_to_tf32_only_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """By itself torch lets cuDNN round convolutions. There is no GPU here, so torch is told that there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not allowed
        open_device("cuda", allow_tf32=allowed)
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (allowed, allowed)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_a_value_that_arrived_with_other_data_is_the_next_check_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cpu")
    computed: list[None] = []
    begin_check = device.begin_check

    def counted() -> torch.Tensor:
        computed.append(None)
        return begin_check()

    monkeypatch.setattr(device, "begin_check", counted)
    device.expect(begin_check().item())
    device.check()
    assert not computed
    device.check()
    assert len(computed) == 1


@pytest.mark.parametrize("change", [1.0, float("nan")])
def test_a_wrong_value_that_arrived_with_other_data_loses_the_device(change: float) -> None:
    device = open_device("cpu")
    device.expect(device.begin_check().item() + change)
    with pytest.raises(DeviceLostError, match="does not compute any more"):
        device.check()


def test_the_value_of_an_earlier_check_is_wrong_for_the_next() -> None:
    """As in memory that a dead device does not write."""
    device = open_device("cpu")
    stale = device.begin_check().item()
    device.begin_check()
    device.expect(stale)
    with pytest.raises(DeviceLostError):
        device.check()
