"""The device: find it, open it, have it prove itself."""

import ctypes
import gc
import logging
import os
import resource
import sys

import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError, DeviceUnavailableError, first_line
from app.pipelines.device_errors import device_errors
from app.pipelines.npu import setup as npu

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8
"""Options of mallopt(3) by their numbers in malloc.h: bytes from which a block is the system's, bytes of the heap's end
from which it is given back, and heaps, as each would keep memory of its own."""

_CHECKS = 1000
"""Different values that checks ask for in turn; all are exact in fp32."""


class TorchDevice:
    """An opened device; the contract is `app.pipelines.base.Device`. On the device thread alone."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device
        self._checked = 0

    def check(self) -> None:
        """Have the device compute a sum that differs from time to time.

        It has to be computed: copies to and from an NPU go on working when its task queue is dead (torch_npu 2.13). And
        it has to differ: the memory that a dead queue leaves as it is may well hold the right answer of the last time.
        """
        self._checked = self._checked % _CHECKS + 1
        try:
            with device_errors(self.torch_device):
                numbers = torch.arange(8, dtype=torch.float32, device=self.torch_device) + self._checked
                found = numbers.sum().item()
        except (DeviceLostError, DeviceOutOfMemoryError):
            raise
        except Exception as error:  # a device that cannot even do this is not well, whoever refuses it
            raise DeviceLostError(
                f"The device does not compute any more ({first_line(error)}); the service is being replaced."
            ) from error
        if found != (expected := sum(range(8)) + 8 * self._checked):
            raise DeviceLostError(
                f"The device does not compute any more: {found:g} came where {expected} was due; "
                "the service is being replaced."
            )

    def free_memory(self) -> None:
        """Give back what the allocator holds and no tensor uses."""
        gc.collect()  # what failed may have left tensors in cycles
        if self.torch_device.type == "cpu":
            if (libc := _glibc()) is not None:
                libc.malloc_trim(0)
        else:
            self.synchronize()  # torch_npu's empty_cache waits for the device too, but holds the GIL meanwhile
            with device_errors(self.torch_device):
                torch.get_device_module(self.torch_device).empty_cache()

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that was in use so far: of the device by torch's allocator, of the process on a CPU."""
        if self.torch_device.type == "cpu":
            unit_bytes = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
        peak_bytes: int = torch.get_device_module(self.torch_device).max_memory_allocated(self.torch_device)
        return peak_bytes

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.torch_device.type != "cpu":
            with device_errors(self.torch_device):
                torch.get_device_module(self.torch_device).synchronize()


def open_device(name: str, *, allow_tf32: bool = False) -> TorchDevice:
    """Find the device that `name` asks for and make it current on the calling thread.

    Args:
        name: `auto` (the first of npu, cuda, cpu that is there), `cpu`, `cuda[:N]` or `npu[:N]`.
        allow_tf32: Whether an accelerator may round fp32 to TF32 or HF32 in products and convolutions.

    Raises:
        DeviceUnavailableError: It is not there. There is no fallback: a service that was meant for an accelerator and
            quietly runs on the CPU is down without saying so.
    """
    kind, _, index = (_first_available() if name == "auto" else name).partition(":")
    if kind == "npu":
        return TorchDevice(_open_npu(int(index or 0), allow_hf32=allow_tf32))
    if kind == "cuda":
        return TorchDevice(_open_cuda(int(index or 0), allow_tf32=allow_tf32))
    _keep_freed_memory()
    return TorchDevice(torch.device("cpu"))


def describe(device: TorchDevice) -> tuple[str, int, int]:
    """Return the device's name and place among the visible ones, and its free and its whole memory in bytes."""
    if device.torch_device.type == "cpu":
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        return "CPU", os.sysconf("SC_AVPHYS_PAGES") * page_bytes, os.sysconf("SC_PHYS_PAGES") * page_bytes
    module = torch.get_device_module(device.torch_device)
    free_bytes, total_bytes = module.mem_get_info(device.torch_device)
    name = module.get_device_name(device.torch_device)
    return f"{name} ({device.torch_device}, of {module.device_count()} visible)", free_bytes, total_bytes


def _first_available() -> str:
    if npu.is_installed():
        if npu.visible_devices():
            return "npu"
        _log.warning("torch_npu is installed, but no NPU is visible")
    return "cuda" if torch.cuda.is_available() else "cpu"


def _open_npu(index: int, *, allow_hf32: bool) -> torch.device:
    hint = "Check npu-smi info, ASCEND_RT_VISIBLE_DEVICES and the container's /dev/davinci*."
    _check_index("npu", index, npu.visible_devices(), hint=hint)
    return npu.open_npu(index, allow_hf32=allow_hf32)


def _open_cuda(index: int, *, allow_tf32: bool) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hint = "Check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is a CUDA build."
    _check_index("cuda", index, count, hint=hint)
    # torch's default is TF32 for cuDNN's convolutions and fp32 for products.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    device = torch.device("cuda", index)
    with device_errors(device):
        torch.cuda.set_device(device)
    return device


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next picture, where it can be told to.

    glibc returns each large block to the system as soon as it is free, and the next picture's blocks are then zeroed
    and faulted in page by page: a sixth of the CPU time of the VAE at 512x512. What is kept is bounded by the largest
    call's peak.
    """
    if (libc := _glibc()) is None:
        return
    if libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20):  # the most of older ones
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        libc.mallopt(_M_ARENA_MAX, 1)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is the one whose allocator is meant."""
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


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


def choose_vae_dtype(name: str, dtype: torch.dtype, *, force_upcast: bool) -> torch.dtype:
    """Return the VAE's dtype that a setting names.

    `auto` is the other models' dtype, but fp32 where that is fp16 and the VAE's config says `force_upcast`: SDXL's VAE
    overflows in fp16 and its pictures turn black (diffusers does the same, but around every single picture).
    """
    if name == "auto":
        return torch.float32 if dtype == torch.float16 and force_upcast else dtype
    return _DTYPES[name]
