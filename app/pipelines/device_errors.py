"""Errors of torch and the drivers, translated into the service's own. No other module does this."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError, OperatorRefusedError, TurboError
from app.pipelines.npu.errors import NPU_ALLOCATOR, npu_error

_CUDA = re.compile(r"CUDA|cuDNN|CUDNN|cuBLAS|CUBLAS|NVRTC")
"""Every error text of CUDA and its libraries matches this. Not all of these errors are torch.AcceleratorError."""

_CUDA_REFUSALS = re.compile(
    r"CUDNN_STATUS_(NOT_SUPPORTED|BAD_PARAM)|CUBLAS_STATUS_(NOT_SUPPORTED|INVALID_VALUE)|cuDNN Frontend error|"
    r"[Uu]nable to find an engine to execute this computation"
)
"""Requests that cuDNN and cuBLAS reject on the host (their documentation of status codes)."""


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Translate the device's errors into the service's own; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        ours = as_turbo_error(error, device)
        if ours is None:
            raise
        traceback.clear_frames(error.__traceback__)  # frees the failed call's tensors now, not with the last traceback
        raise ours from error


def as_turbo_error(error: Exception, device: torch.device) -> TurboError | None:
    """Translate an error of a device call; None if it is not the device's.

    Every error that an accelerator reports is fatal, known or not: no result of a failed device can be trusted. An
    error of a check on the host, by an operator or by torch, belongs to the request; the caller then checks the device.
    On a CPU the only device error is a lack of memory.
    """
    if _is_from_compiler(error) or isinstance(error, NotImplementedError):  # there is no kernel, so none ran
        return None
    if _is_out_of_memory(error, device):
        return DeviceOutOfMemoryError("The device is out of memory for a picture of this size.", retry_after_s=5)
    if device.type == "cpu":
        return None
    return npu_error(error) if device.type == "npu" else _cuda_error(error)


def _cuda_error(error: Exception) -> TurboError | None:
    if isinstance(error, torch.AcceleratorError):
        return DeviceLostError()
    if _CUDA_REFUSALS.search(str(error)):
        return OperatorRefusedError("The device is well, but an operator does not take a picture of this kind.")
    return DeviceLostError() if _CUDA.search(str(error)) else None


def _is_from_compiler(error: Exception) -> bool:
    """Tell whether torch.compile raised the error. It raises RuntimeErrors too, and they are not the device's."""
    compiler = sys.modules.get("torch._dynamo.exc")  # loaded only if something is compiled
    return compiler is not None and isinstance(error, compiler.TorchDynamoException)


def _is_out_of_memory(error: Exception, device: torch.device) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return device.type != "npu" or str(error).startswith(NPU_ALLOCATOR)
    if device.type == "cuda" and "NVML_SUCCESS == r INTERNAL ASSERT" in str(error):
        return True  # CUDACachingAllocator.cpp raises this instead if NVML cannot be queried
    # The host's own memory: Python's error, and the one of torch's CPU allocator.
    return isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
