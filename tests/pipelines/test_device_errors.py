import weakref

import pytest
import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError
from app.pipelines.device_errors import NPU_FAULTS, as_turbo_error, device_errors, explain

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ACL = (
    "aclrtSynchronizeStream:/build/NPUStream.cpp:500 NPU function error: {call}, error code is {code}\n[ERROR] ERR00100"
)
QUEUE = "The Inner error is reported as above. The process exits for this inner error, and the current working operator"


class Npu:
    """Stands for a torch.device of type npu, which plain torch cannot name before a backend takes the name."""

    type = "npu"


NPU = Npu()

# Every row of the table by what it has to say of the texts that torch_npu and CANN write.
TEXTS = {
    "the device's scheduler does not answer": [ACL.format(call="AclSynchronizeStream", code=507010)],
    "an AI Core or vector core ran into its timeout": [ACL.format(call="x", code=code) for code in (507014, 507034)],
    "an AI Core or vector core raised an exception": [
        *(ACL.format(call="x", code=code) for code in (507015, 507016, 507035, 507036, 507042, 507045, 507050)),
        f"{QUEUE} is Add. EZ9999: Inner Error! The error from device(chipId:0), there is an aicore error exception",
    ],
    "an AI CPU operator failed": [
        *(ACL.format(call="x", code=code) for code in (507017, 507018, 507900)),
        "E39999: Inner Error!",
    ],
    "the device did not finish its work": [
        *(ACL.format(call="x", code=code) for code in (507011, 507046, 507047, 507048, 507049, 107020)),
        "EE1002: Stream synchronize timeout",
    ],
    "the device cannot be started or is gone": [
        *(ACL.format(call="x", code=code) for code in (507033, 207004)),
        "EL0001: device 0 is abnormal",
    ],
    "the device's memory has an error that cannot be corrected": [
        "UCE ERROR, 0x12",
        "reason=[device mem error] 507053",
    ],
    "the device's memory has an ECC error of several bits": [
        "HBM MULTI BIT ECC ERROR, ",
        "hbm Multi-bit ECC error",
        ACL.format(call="x", code=507054),
    ],
    "the device suspects another device's memory": [
        "SUSPECT MEM ERROR, ",
        "SUSPECT REMOTE ERROR, ",
        *(ACL.format(call="x", code=code) for code in (507055, 507057)),
    ],
    "the link between devices is broken": ["HCCS LINK ERROR, ", "UB LINK ERROR", ACL.format(call="x", code=507056)],
    "the device's work was aborted from outside": [
        "FORCE STOP, ",
        "device task abort",
        *(ACL.format(call="x", code=code) for code in (107022, 107023)),
    ],
    "memory could not be had outside of torch's allocator, so that work was dropped": [
        *(ACL.format(call="x", code=code) for code in (207001, 207018, 245000, 245002)),
        f"{QUEUE} is MatMul. EL0004: Failed to allocate memory requested by HCCL module",
    ],
    "driver, firmware and CANN do not match": [ACL.format(call="x", code=code) for code in (207000, 207019)],
    "this user may not use the device": [ACL.format(call="aclInit", code=207006), "EL0007: no permission"],
    "the device has no streams, events or models left": [
        *(ACL.format(call="x", code=code) for code in (207005, 207007, 207008, 207009, 207010)),
        "EL0006: insufficient resources",
    ],
    "the device's number is not there, or an argument is not valid": [
        ACL.format(call="SetDevice", code=107001),
        "EE1001: The argument is invalid.",
        "EL0002: invalid device id",
    ],
    "a thread used the device before it was set there": [ACL.format(call="x", code=107002)],
    "CANN's environment is not set": [ACL.format(call="aclInit", code=code) for code in (100039, 148049)],
    "the driver failed": [*(ACL.format(call="x", code=code) for code in (507899, 507901)), "EL9999: Inner Error!"],
    "an operator failed on the device": ["EZ9999: Inner Error!"],
    "an operation failed on the device some time before": [f"{QUEUE} is Conv2D."],
}


def test_every_row_of_the_table_is_tested() -> None:
    assert list(TEXTS) == [fault.meaning for fault in NPU_FAULTS]


@pytest.mark.parametrize(("meaning", "text"), [(meaning, text) for meaning, texts in TEXTS.items() for text in texts])
def test_an_npu_s_error_is_explained_and_fatal(meaning: str, text: str) -> None:
    for error in (RuntimeError(text), torch.OutOfMemoryError(text)):
        ours = as_turbo_error(error, NPU)  # type: ignore[arg-type] # stands for one
        assert isinstance(ours, DeviceLostError)
        assert str(ours) == f"The device failed ({meaning}); the service is being replaced."
        assert ours.remedy


def test_an_unknown_error_of_an_npu_is_fatal_too() -> None:
    ours = as_turbo_error(RuntimeError("what is this"), NPU)  # type: ignore[arg-type] # stands for one
    assert isinstance(ours, DeviceLostError)
    assert "not in the table" in str(ours)
    assert explain(RuntimeError("error code is 5070150")).meaning == "an error that is not in the table"


@pytest.mark.parametrize(
    "text",
    [
        "NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity; 0 bytes free)",
        "NPU out of memory. NPUWorkspaceAllocator tried to allocate 1.00 GiB(NPU 0; 60.97 GiB total capacity)",
    ],
)
def test_the_npu_s_allocators_are_survived(text: str) -> None:
    ours = as_turbo_error(torch.OutOfMemoryError(text), NPU)  # type: ignore[arg-type] # stands for one
    assert isinstance(ours, DeviceOutOfMemoryError)
    assert ours.retry_after_s == 5


def test_their_text_in_another_class_is_not() -> None:
    error = RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB")
    assert isinstance(as_turbo_error(error, NPU), DeviceLostError)  # type: ignore[arg-type] # stands for one


@pytest.mark.parametrize(
    ("error", "device", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), CUDA, DeviceOutOfMemoryError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), CUDA, DeviceLostError),
        (MemoryError(), CUDA, DeviceOutOfMemoryError),
        (MemoryError(), CPU, DeviceOutOfMemoryError),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            CPU,
            DeviceOutOfMemoryError,
        ),
        (RuntimeError("shapes differ"), CPU, type(None)),
    ],
)
def test_the_errors_of_other_devices(error: Exception, device: torch.device, expected: type) -> None:
    assert type(as_turbo_error(error, device)) is expected


def test_torch_s_own_allocator_on_this_cpu_is_recognised() -> None:
    with pytest.raises(DeviceOutOfMemoryError), device_errors(CPU):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_what_is_none_of_the_device_s_passes() -> None:
    with pytest.raises(ValueError, match="odd"), device_errors(CPU):
        raise ValueError("odd")
    with pytest.raises(RuntimeError, match="shapes"), device_errors(CPU):
        raise RuntimeError("shapes differ")


def test_the_failed_call_s_tensors_are_free_while_its_error_is_still_held() -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []

    def fail() -> None:
        activations = torch.ones(3)
        tensors.append(weakref.ref(activations))
        torch.empty(1 << 60, dtype=torch.uint8)

    with pytest.raises(DeviceOutOfMemoryError) as held, device_errors(CPU):
        fail()
    assert held.value.__cause__ is not None
    assert tensors[0]() is None


def test_what_torch_compile_raises_is_none_of_the_device_s() -> None:
    def backend(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    compiled = torch.compile(torch.nn.functional.relu, backend=backend)
    with pytest.raises(RuntimeError, match="no such operator") as raised, device_errors(NPU):  # type: ignore[arg-type]
        compiled(torch.ones(3))
    assert not isinstance(raised.value, DeviceLostError)
    assert as_turbo_error(RuntimeError("no such operator"), NPU) is not None  # type: ignore[arg-type]
