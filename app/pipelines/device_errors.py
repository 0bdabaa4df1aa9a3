"""Foreign errors become ours, here alone: what torch and the drivers raise, and what it means for the service."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError, OperatorRefusedError
from app.pipelines.npu.errors import _NPU_ALLOCATOR, _of_npu

_CUDA = re.compile(r"CUDA|cuDNN|CUDNN|cuBLAS|CUBLAS|NVRTC")
"""Likewise of CUDA and its libraries; most, but not all, come as torch.AcceleratorError."""

_CUDA_REFUSALS = re.compile(
    r"CUDNN_STATUS_(NOT_SUPPORTED|BAD_PARAM)|CUBLAS_STATUS_(NOT_SUPPORTED|INVALID_VALUE)|cuDNN Frontend error|"
    r"[Uu]nable to find an engine to execute this computation"
)
"""Requests that cuDNN and cuBLAS reject on the host (their documentation of status codes)."""


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Turn what torch raises inside into our errors; what is none of the device's passes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        ours = as_turbo_error(error, device)
        if ours is None:
            raise
        traceback.clear_frames(error.__traceback__)  # the failed call's tensors go now, not with the last traceback
        raise ours from error


_Ours = DeviceOutOfMemoryError | DeviceLostError | OperatorRefusedError


def as_turbo_error(error: Exception, device: torch.device) -> _Ours | None:
    """Say what an error of a device call means for the service; None if it is not the device's.

    Every error that an accelerator reports is fatal, known or not, because nothing that a failed device computes can be
    trusted. An error of a check on the host, by an operator or by torch, belongs to the request; the caller then checks
    the device. On a CPU the only device error is a lack of memory.
    """
    if _is_compiler_s(error) or isinstance(error, NotImplementedError):  # there is no kernel, so none ran
        return None
    if _is_out_of_memory(error, device):
        return DeviceOutOfMemoryError("The device is out of memory for a picture of this size.", retry_after_s=5)
    if device.type == "cpu":
        return None
    return _of_npu(error) if device.type == "npu" else _of_cuda(error)


def _of_cuda(error: Exception) -> DeviceLostError | OperatorRefusedError | None:
    if isinstance(error, torch.AcceleratorError):
        return DeviceLostError()
    if _CUDA_REFUSALS.search(str(error)):
        return OperatorRefusedError("The device is well, but an operator does not take a picture of this kind.")
    return DeviceLostError() if _CUDA.search(str(error)) else None


def _is_compiler_s(error: Exception) -> bool:
    """Tell whether torch.compile raised it, which is a RuntimeError too and nothing of the device's."""
    compiler = sys.modules.get("torch._dynamo.exc")  # not imported where nothing is compiled
    return compiler is not None and isinstance(error, compiler.TorchDynamoException)


def _is_out_of_memory(error: Exception, device: torch.device) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return device.type != "npu" or str(error).startswith(_NPU_ALLOCATOR)
    if device.type == "cuda" and "NVML_SUCCESS == r INTERNAL ASSERT" in str(error):
        return True  # which CUDACachingAllocator.cpp raises instead where NVML cannot be asked
    # The host's own: Python's error, and that of torch's CPU allocator.
    return isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
