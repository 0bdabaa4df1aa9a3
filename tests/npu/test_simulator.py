"""The simulated NPU itself: it detects the mistakes that a real NPU detects, and fails in the same ways."""

import pytest
import torch

from app.errors import DeviceLostError
from app.pipelines.device import open_device
from tests.npu.simulator import Npu


def test_tensors_of_two_devices_cannot_meet(npu: Npu) -> None:
    npu.count = 2
    ours = torch.ones(3, device="npu:0")
    for other in (torch.ones(3), torch.ones(3, device="npu:1")):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            _ = ours + other
    assert (ours + torch.tensor(2.0)).cpu().tolist() == [3, 3, 3]


@pytest.mark.usefixtures("npu")
def test_fp64_does_not_reach_the_device() -> None:
    with pytest.raises(RuntimeError, match="fp64 is not supported"):
        torch.ones(3, dtype=torch.float64).to("npu")


@pytest.mark.usefixtures("npu")
def test_a_generator_of_the_cpu_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Expected a 'npu' device type for generator"):
        torch.randn(3, device="npu", generator=torch.Generator("cpu"))


@pytest.mark.usefixtures("npu")
def test_a_name_that_torch_npu_does_not_have_is_none_here() -> None:
    with pytest.raises(AttributeError):
        _ = torch.npu.OutOfMemoryError  # type: ignore[attr-defined] # the name must not exist
    with pytest.raises(AssertionError, match=r"torch\.npu\.set_jit_mode does not exist"):
        torch.npu.set_jit_mode = None  # type: ignore[attr-defined] # the name must not exist


def test_memory_that_is_not_used_any_more_is_free_again(npu: Npu) -> None:
    before = npu.allocated_bytes
    tensor = torch.ones(1 << 20, device="npu")
    assert npu.allocated_bytes >= before + (4 << 20)
    del tensor
    torch.npu.empty_cache()  # type: ignore[attr-defined] # the simulator adds it
    assert npu.allocated_bytes <= before


def test_a_dead_queue_leaves_the_answers_of_before_and_copies_go_on(npu: Npu) -> None:
    def canary() -> float:
        return float((torch.arange(8, dtype=torch.float32, device="npu") + 1).sum().item())

    assert canary() == 36
    npu.queue = "dying"
    with pytest.raises(RuntimeError, match="The Inner error is reported as above"):
        canary()
    assert vars(npu)["queue"] == "dead"
    assert canary() == 36, "a check of a fixed value passes, because the memory still holds the last result"
    assert torch.arange(3.0).to("npu").cpu().tolist() == [0, 1, 2]


def test_the_service_s_own_check_is_not_deceived(npu: Npu) -> None:
    device = open_device("npu")
    for _ in range(3):
        device.check()
    npu.queue = "dead"
    for _ in range(3):
        with pytest.raises(DeviceLostError, match="does not compute any more"):
            device.check()
