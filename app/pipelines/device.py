"""The device: find it, open it, and turn its errors into ours. The one place that imports torch_npu."""

import importlib
import importlib.util
import logging
from typing import Any

import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError, DeviceUnavailableError

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def open_device(name: str) -> torch.device:
    """Find the device that `name` asks for and make it current on the calling thread.

    Args:
        name: `auto` (the first of npu, cuda, cpu that is there), `cpu`, `cuda[:N]` or `npu[:N]`.

    Raises:
        DeviceUnavailableError: It is not there. There is no fallback: a service that was meant for an accelerator and
            quietly runs on the CPU is down without saying so.
    """
    kind, _, index = (_first_available() if name == "auto" else name).partition(":")
    if kind == "npu":
        return _open_npu(int(index or 0))
    if kind == "cuda":
        return _open_cuda(int(index or 0))
    return torch.device("cpu")


def _first_available() -> str:
    if importlib.util.find_spec("torch_npu") is not None:
        if _torch_npu().is_available():
            return "npu"
        _log.warning("torch_npu is installed, but no NPU is visible")
    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch_npu() -> Any:
    """Import torch_npu and return its `npu` module, which it also installs as `torch.npu`."""
    try:
        return importlib.import_module("torch_npu").npu
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceUnavailableError(
            f"torch_npu cannot be loaded ({error}). Install the torch_npu that matches torch {torch.__version__}, "
            "source CANN's set_env.sh, or set TURBO_DEVICE=cpu."
        ) from error


def _open_npu(index: int) -> torch.device:
    npu = _torch_npu()  # before anything names the device: torch learns the word from it
    count = npu.device_count() if npu.is_available() else 0
    hint = "Check npu-smi info, ASCEND_RT_VISIBLE_DEVICES and the container's /dev/davinci*."
    _check_index("npu", index, count, hint=hint)
    # Without these, 310P and 910 compile each new shape and use a private tensor layout; both are slow at new sizes.
    # Source: torch_npu's documentation of set_compile_mode and npu.config.
    npu.set_compile_mode(jit_compile=False)
    npu.config.allow_internal_format = False
    device = torch.device("npu", index)
    npu.set_device(device)  # the current device is per thread and starts at 0
    return device


def _open_cuda(index: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hint = "Check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is a CUDA build."
    _check_index("cuda", index, count, hint=hint)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _check_index(kind: str, index: int, count: int, *, hint: str) -> None:
    if index >= count:
        raise DeviceUnavailableError(
            f"TURBO_DEVICE={kind}:{index} is not there: {count} visible {kind} devices. {hint}"
        )


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a setting names; `auto` is fp16 on npu and cuda, and fp32 on cpu, where fp16 is slow."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return _DTYPES[name]


def as_turbo_error(error: RuntimeError, device: torch.device) -> DeviceOutOfMemoryError | DeviceLostError | None:
    """Say what a RuntimeError of a device call means for the service; None if it is not the device's.

    On an accelerator every error but the allocator's is fatal: after one asynchronous error torch_npu's task queue is
    dead, and later calls return normally with stale memory. The allocator's own error begins "NPU out of memory"; the
    same class raised from the queue does not. Source: torch_npu 2.13, NPUCachingAllocator.cpp and NPUQueue.cpp.
    """
    if isinstance(error, torch.OutOfMemoryError):
        if device.type != "npu" or str(error).startswith("NPU out of memory"):
            return DeviceOutOfMemoryError("The device is out of memory for a picture of this size.", retry_after_s=5)
        return DeviceLostError()
    if device.type == "cpu":
        return None
    return DeviceLostError()
