import weakref

import pytest
import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError, OperatorRefusedError
from app.pipelines.device_errors import as_turbo_error, device_errors
from app.pipelines.npu.errors import NPU_FAULTS, NPU_REFUSALS, explain

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
    "an AI Core or vector core timed out": [ACL.format(call="x", code=code) for code in (507014, 507034)],
    "an AI Core or vector core raised an exception": [
        *(ACL.format(call="x", code=code) for code in (507015, 507016, 507035, 507036, 507042, 507045, 507050)),
        f"{QUEUE} is Add. EZ9999: Inner Error! The error from device(chipId:0), there is an aicore error exception",
        "EZ9999: Inner Error! there is an exception of fftsplus aivector error. The error from device(chipId:0)",
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
    "the memory of another device may be faulty": [
        "SUSPECT MEM ERROR, ",
        "SUSPECT REMOTE ERROR, ",
        *(ACL.format(call="x", code=code) for code in (507055, 507057)),
    ],
    "the link between devices failed": ["HCCS LINK ERROR, ", "UB LINK ERROR", ACL.format(call="x", code=507056)],
    "the device's work was aborted from outside": [
        "FORCE STOP, ",
        "device task abort",
        *(ACL.format(call="x", code=code) for code in (107022, 107023)),
    ],
    "an allocation outside of torch's allocator failed, and work was dropped": [
        *(ACL.format(call="x", code=code) for code in (207001, 207018, 245000, 245002)),
        f"{QUEUE} is MatMul. EL0004: Failed to allocate memory requested by HCCL module",
    ],
    "driver, firmware and CANN do not match": [ACL.format(call="x", code=code) for code in (207000, 207019)],
    "this user may not use the device": [ACL.format(call="aclInit", code=207006), "EL0007: no permission"],
    "the device has no streams, events or models left": [
        *(ACL.format(call="x", code=code) for code in (207005, 207007, 207008, 207009, 207010)),
        "EL0006: insufficient resources",
    ],
    "the device number does not exist, or an argument is invalid": [
        ACL.format(call="SetDevice", code=107001),
        "EE1001: The argument is invalid.",
        "EL0002: invalid device id",
    ],
    "a thread used the device before setting it": [ACL.format(call="x", code=107002)],
    "CANN's environment is not set": [ACL.format(call="aclInit", code=code) for code in (100039, 148049)],
    "the driver failed": [*(ACL.format(call="x", code=code) for code in (507899, 507901)), "EL9999: Inner Error!"],
    "an operator could not be launched": [ACL.format(call="call aclnnAdd failed", code=361001)],
    "CANN's runtime reports an error of the device": [
        ACL.format(call="c10_npu::acl::AclrtSynchronizeStreamWithTimeout(copy_stream)", code=999999),
        ACL.format(call="x", code=507999),
        "EH9999: Inner Error!\n synchronize stream failed, runtime result = 507999",
    ],
    "an earlier operation failed on the device": [f"{QUEUE} is Conv2D."],
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


@pytest.mark.parametrize(
    "text",
    [
        ACL.format(call="something new", code=999999),
        "EZ9999: Inner Error! ",
        "CANN error: CANN Inner Error. Please rectify it.",
        "ACL stream failed",
    ],
)
def test_an_unknown_error_of_an_npu_is_fatal_too(text: str) -> None:
    ours = as_turbo_error(RuntimeError(text), NPU)  # type: ignore[arg-type] # stands for one
    assert isinstance(ours, DeviceLostError)
    assert "not in the table" in str(ours)


def test_a_number_of_more_digits_is_no_code() -> None:
    assert explain(RuntimeError("error code is 5070150")).meaning == "an error that is not in the table"


HOST = (
    "conv:../third_party/op-plugin/op_plugin/ops/opapi/ConvolutionKernelNpuOpApi.cpp:310 NPU function error: call "
    "aclnnConvolution failed, error code is {code}\n[ERROR] 2026-06-23-03:49:48 (PID:507015123, Device:0, RankID:0) "
    "ERR00100 PTA call acl api failed.\n{said}"
)
"""What torch_npu 2.12 raises on the calling thread when aclnnConvolutionGetWorkspaceSize fails."""

REFUSALS = {
    "an operator does not take these arguments": [
        HOST.format(code=161002, said="[PID: 1920919] 2026-06-23 AclNN_Parameter_Error(EZ1001): DT_DOUBLE ..."),
        HOST.format(code=161001, said=""),
        "self:Convolution.cpp:1 tensor is too large\n[ERROR] 2026-06-23 (PID:1) ERR01001 OPS invalid parameter",
        "[ERROR] 2026-06-23-03:49:48 (PID:1, Device:0, RankID:0) ERR01007 OPS feature not supported",
    ],
    "an operator cannot tile its work for this size": [
        HOST.format(
            code=561002, said="EZ9999: Inner Error!\nEZ9999[PID: 584] AclNN_Inner_Error(EZ9999):  do tiling failed"
        ),
        HOST.format(code=561001, said=""),
    ],
    "an operator has no kernel for this, or the installation of CANN's kernels is incomplete": [
        HOST.format(code=561103, said="EZ9999: Inner Error!\n ADD_TO_LAUNCHER_LIST_AICORE failed."),
        HOST.format(code=561003, said=""),
        "InnerRunOpApi:OpParamMaker.cpp:287 OPS function error: aclnnConvolution, error code is 561000\nERR01100",
    ],
}


def test_every_refusal_of_the_table_is_tested() -> None:
    assert list(REFUSALS) == [refusal.meaning for refusal in NPU_REFUSALS]


@pytest.mark.parametrize(
    ("meaning", "text"), [(meaning, text) for meaning, texts in REFUSALS.items() for text in texts]
)
def test_what_an_operator_refuses_on_the_host_is_the_request_s_own_error(meaning: str, text: str) -> None:
    ours = as_turbo_error(RuntimeError(text), NPU)  # type: ignore[arg-type] # stands for one
    assert isinstance(ours, OperatorRefusedError)
    assert meaning in str(ours)
    assert ("(aclnnConvolution)" in str(ours)) is ("aclnnConvolution" in text)


@pytest.mark.parametrize(
    "sign",
    [
        "EZ9999: The error from device(chipId:0, dieId:0), there is an exception of aivec error",
        "EE9999: Inner Error! rtStreamSynchronize failed",
        "EL0004: Failed to allocate memory",
        "The Inner error is reported as above.",
        "UCE ERROR, ",
    ],
)
def test_a_refusal_with_a_word_of_the_device_in_it_is_fatal(sign: str) -> None:
    """aclGetRecentErrMsg adds what the device has reported since to the text of any error (hicann/runtime)."""
    error = RuntimeError(HOST.format(code=561002, said=sign))
    assert isinstance(as_turbo_error(error, NPU), DeviceLostError)  # type: ignore[arg-type] # stands for one


@pytest.mark.parametrize("pid", ["(PID:507015, Device:0", "[PID: 207001]"])
def test_the_number_of_a_process_is_no_code(pid: str) -> None:
    error = RuntimeError(HOST.format(code=561002, said=pid))
    assert isinstance(as_turbo_error(error, NPU), OperatorRefusedError)  # type: ignore[arg-type] # stands for one


@pytest.mark.parametrize("device", [NPU, CUDA], ids=["npu", "cuda"])
def test_an_operator_that_is_not_there_has_not_run(device: torch.device) -> None:
    error = NotImplementedError("Could not run 'aten::x' with arguments from the 'CUDA' backend.")
    assert as_turbo_error(error, device) is None


def test_where_texts_are_cut_down_no_refusal_is_told_from_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NPU_COMPACT_ERROR_OUTPUT", "1")
    for text in (HOST.format(code=561002, said=""), "Given groups=1, expected weight to be at least 1"):
        assert isinstance(as_turbo_error(RuntimeError(text), NPU), DeviceLostError)  # type: ignore[arg-type] # stands for one


@pytest.mark.parametrize("device", [NPU, CUDA], ids=["npu", "cuda"])
@pytest.mark.parametrize(
    "text",
    [
        "Given groups=1, weight of size [4, 4, 3, 3], expected input[1, 8, 64, 64] to have 4 channels, but got 8",
        "The size of tensor a (64) must match the size of tensor b (32) at non-singleton dimension 3",
        "shape '[1, 107002]' is invalid for input of size 207001",
    ],
)
def test_what_torch_refuses_before_it_calls_the_device_is_none_of_the_device_s(text: str, device: torch.device) -> None:
    assert as_turbo_error(RuntimeError(text), device) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a"), "refused"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "refused"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx(handle)`"), "refused"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"), "lost"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "lost"),
        (RuntimeError("CUDA driver error: invalid argument"), "lost"),
        (torch.AcceleratorError("an illegal memory access was encountered", 700), "lost"),
        (torch.AcceleratorError("CUDNN_STATUS_NOT_SUPPORTED", 9), "lost"),
    ],
)
def test_on_cuda_too_what_a_library_refuses_on_the_host_is_told_from_what_the_device_reports(
    error: Exception, kind: str
) -> None:
    expected = OperatorRefusedError if kind == "refused" else DeviceLostError
    assert isinstance(as_turbo_error(error, CUDA), expected)


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
        (
            RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACaching"),
            CUDA,
            DeviceOutOfMemoryError,
        ),
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
    assert as_turbo_error(RuntimeError("NPU: no such operator"), NPU) is not None  # type: ignore[arg-type]
