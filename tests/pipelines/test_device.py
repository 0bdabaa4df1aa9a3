import pytest
import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError, DeviceUnavailableError
from app.pipelines.device import as_turbo_error, choose_dtype, open_device

CPU, CUDA, NPU = torch.device("cpu"), torch.device("cuda", 0), "npu"


class Npu:
    """Stands for a torch.device of type npu, which plain torch cannot name before a backend takes the name."""

    type = "npu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto finds the GPU first")
def test_auto_falls_to_the_cpu_where_there_is_nothing_else() -> None:
    assert open_device("auto") == CPU


def test_an_npu_without_torch_npu_is_a_clear_error() -> None:
    with pytest.raises(DeviceUnavailableError, match="torch_npu cannot be loaded"):
        open_device("npu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that must not be there")
def test_a_gpu_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"TURBO_DEVICE=cuda:1 is not there: 0 visible cuda devices"):
        open_device("cuda:1")


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CPU, torch.float32),
        ("auto", CUDA, torch.float16),
        ("fp16", CPU, torch.float16),
        ("bf16", CUDA, torch.bfloat16),
        ("fp32", CUDA, torch.float32),
    ],
)
def test_the_dtype_follows_the_setting_and_then_the_device(
    name: str, device: torch.device, expected: torch.dtype
) -> None:
    assert choose_dtype(name, device) is expected


@pytest.mark.parametrize(
    ("error", "device", "expected"),
    [
        (torch.OutOfMemoryError("NPU out of memory. Tried to allocate 2.00 GiB"), Npu, DeviceOutOfMemoryError),
        (torch.OutOfMemoryError("The Inner error is reported as above."), Npu, DeviceLostError),
        (RuntimeError("ACL stream synchronize failed, error code is 507011"), Npu, DeviceLostError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), CUDA, DeviceOutOfMemoryError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), CUDA, DeviceLostError),
    ],
)
def test_an_accelerator_s_error_is_fatal_unless_it_is_the_allocator_s(
    error: RuntimeError, device: torch.device, expected: type[Exception]
) -> None:
    assert type(as_turbo_error(error, device)) is expected


def test_an_error_on_the_cpu_is_the_request_s_own() -> None:
    assert as_turbo_error(RuntimeError("shapes differ"), CPU) is None
