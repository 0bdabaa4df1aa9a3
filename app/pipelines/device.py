"""The device: find it, open it, check it."""

import gc
import logging
import os
import platform
import resource
import sys

import torch

from app.errors import DeviceLostError, DeviceOutOfMemoryError, DeviceUnavailableError, first_line
from app.pipelines.device_errors import device_errors
from app.pipelines.host_memory import memory_bytes, return_freed_memory
from app.pipelines.npu import setup as npu
from app.pipelines.npu.host import cann_version

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
"""Features of x86 processors that multiply in bf16, as `torch.cpu.get_capabilities` names them."""

_INT8_UNITS = {"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI"}
"""Features of x86 processors that multiply in int8 and add in int32."""

LARGE_UNET = 100_000_000
"""Parameters of a UNet from which time and memory count for more than fp32's accuracy. SDXL's has 2.6 thousand million,
the demo model's 7 million."""

_CHECKS = 1000
"""Number of different values that checks compute in turn; all are exact in fp32."""


class TorchDevice:
    """An opened device, for the device thread; the contract is `app.pipelines.base.Device`."""

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device
        self._checked = 0
        self._arrived: float | None = None

    def check(self) -> None:
        """Compute a sum that differs from the last check's; the contract is `Device.check`.

        A copy is no check: copies to and from an NPU still work when its task queue is dead (torch_npu 2.13). The sum
        must differ: a dead queue leaves memory unchanged, and the memory may still contain the last correct result.

        If `expect` was given the value of a sum since the last check, that is checked, and nothing is computed.
        """
        found, self._arrived = self._arrived, None
        if found is None:
            try:
                with device_errors(self.torch_device):
                    found = self.begin_check().item()
            except (DeviceLostError, DeviceOutOfMemoryError):
                raise
            except Exception as error:  # a device that cannot compute this is lost, whatever the error
                raise _not_computing(first_line(error)) from error
        if found != (expected := sum(range(8)) + 8 * self._checked):
            raise _not_computing(f"the result was {found:g} instead of {expected}")

    def begin_check(self) -> torch.Tensor:
        """Start to compute the sum of the next check, after all queued work; return it, of shape (1,), in fp32."""
        self._checked = self._checked % _CHECKS + 1
        self._arrived = None
        numbers = torch.arange(8, dtype=torch.float32, device=self.torch_device) + self._checked
        return numbers.sum()[None]

    def expect(self, found: float | None) -> None:
        """Take the value of `begin_check` that arrived on the host with other data, for the next check.

        None drops it: work that came later may have failed.
        """
        self._arrived = found

    def receive(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor of the host to the device; the host does not wait for it, nor for the device's queued work.

        torch_npu and CUDA wait unless the host's memory is pinned.
        """
        if self.torch_device.type == "cpu":
            return tensor
        with device_errors(self.torch_device):
            return tensor.pin_memory().to(self.torch_device, non_blocking=True)

    def free_memory(self) -> None:
        gc.collect()  # a failed call may leave tensors in reference cycles
        if self.torch_device.type == "cpu":
            return_freed_memory()
        else:
            self.synchronize()  # torch_npu's empty_cache waits for the device too, but holds the GIL meanwhile
            with device_errors(self.torch_device):
                torch.get_device_module(self.torch_device).empty_cache()

    @property
    def peak_memory_bytes(self) -> int:
        """The peak so far: of torch's allocator on an accelerator, of the process on a CPU."""
        if self.torch_device.type == "cpu":
            unit_bytes = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
        return int(torch.get_device_module(self.torch_device).max_memory_allocated(self.torch_device))

    @property
    def threads(self) -> int:
        """Threads of a CPU that compute a picture."""
        return torch.get_num_threads()

    @property
    def computed_by(self) -> str:
        """The device, and what else decides the bytes of its pictures' files: with the same text they are the same.

        Beside an accelerator too the CPU counts: it writes the files, and a PNG's bytes depend on its instruction set.
        """
        capabilities = torch.cpu.get_capabilities()
        if self.torch_device.type == "cpu":
            processor = sorted(capabilities.items())
            return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, {self.threads} threads"
        host = [platform.machine(), *sorted(name for name, there in capabilities.items() if there is True)]
        name = torch.get_device_module(self.torch_device).get_device_name(self.torch_device)
        if self.torch_device.type == "npu":
            return f"{name}, CANN {cann_version(os.environ)}, {host}"
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return f"{name}, CUDA {torch.version.cuda}, cuDNN {cudnn}, {host}"

    def synchronize(self) -> None:
        """Wait until the device has finished its queued work."""
        if self.torch_device.type != "cpu":
            with device_errors(self.torch_device):
                torch.get_device_module(self.torch_device).synchronize()


def _not_computing(reason: str) -> DeviceLostError:
    return DeviceLostError(f"The device does not compute any more ({reason}); the service is being replaced.")


def unused_cuda_build() -> tuple[str, str] | None:
    """Return a fact and its remedy if torch brings CUDA's libraries, which take gigabytes, and CUDA has no GPU here."""
    if torch.version.cuda is None or torch.cuda.is_available():
        return None
    fact = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, but CUDA finds no GPU here."
    remedy = (
        "The CPU's build is gigabytes smaller. In a new environment, uv selects it by `--torch-backend cpu`, and "
        "pip by `--extra-index-url https://download.pytorch.org/whl/cpu`. For a GPU, check nvidia-smi."
    )
    return fact, remedy


def open_device(name: str, *, allow_tf32: bool = False) -> TorchDevice:
    """Find the device and make it current on the calling thread.

    `name` is `auto` (the first available of npu, cuda, cpu), `cpu`, `cuda[:N]` or `npu[:N]`. With `allow_tf32` an
    accelerator may round fp32 to TF32 or HF32 in products and convolutions.

    Raises:
        DeviceUnavailableError: The device does not exist. A silent fallback to the CPU would be too slow.
    """
    kind, _, number = (_first_available() if name == "auto" else name).partition(":")
    if kind == "cpu":
        if unused := unused_cuda_build():
            _log.warning("%s %s", *unused)
        return TorchDevice(torch.device("cpu"))
    index = int(number or 0)
    if kind == "npu":
        count = npu.visible_devices()
        hint = "Check npu-smi info, ASCEND_RT_VISIBLE_DEVICES and the container's /dev/davinci*."
    else:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        hint = "Check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is a CUDA build."
    if index >= count:
        raise DeviceUnavailableError(
            f"TURBO_DEVICE={kind}:{index} is not available: {count} visible {kind} devices. {hint}"
        )
    if kind == "npu":
        return TorchDevice(npu.open_npu(index, allow_hf32=allow_tf32))
    return TorchDevice(_open_cuda(index, allow_tf32=allow_tf32))


def describe(device: TorchDevice) -> tuple[str, int, int]:
    """Return the device's name (with its number and the number of visible devices), its free and total bytes."""
    if device.torch_device.type == "cpu":
        return "CPU", *memory_bytes()
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


def _open_cuda(index: int, *, allow_tf32: bool) -> torch.device:
    # torch's default is TF32 for cuDNN's convolutions and fp32 for products.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    device = torch.device("cuda", index)
    with device_errors(device):
        torch.cuda.set_device(device)
    return device


def choose_dtype(name: str, device: torch.device, *, parameters: int) -> tuple[torch.dtype, str]:
    """Return the dtype of a setting and, in words, the reason. `parameters` is the number of the UNet's.

    `auto` is fp16 on npu and cuda. On a CPU it is bf16 if the processor multiplies in bf16 and the model is large, else
    fp32: on other processors bf16 takes twice as long as fp32, and fp16 is slow on every CPU. For `int8` it is the
    dtype of what is not in int8.

    Raises:
        DeviceUnavailableError: The device does not multiply in int8.
    """
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    bf16_unit = next((unit for feature, unit in _BF16_UNITS.items() if capabilities.get(feature)), None)
    if name == "int8":
        if not any(capabilities.get(feature) for feature in _INT8_UNITS):
            units = " or ".join(_INT8_UNITS.values())
            raise DeviceUnavailableError(f"TURBO_DTYPE=int8 needs a CPU with {units}. Set another TURBO_DTYPE.")
        return torch.bfloat16 if bf16_unit else torch.float32, "as TURBO_DTYPE says"
    if name != "auto":
        return _DTYPES[name], "as TURBO_DTYPE says"
    if device.type != "cpu":
        return torch.float16, f"the default on {device.type}"
    if bf16_unit is None:
        return torch.float32, f"the processor has neither {' nor '.join(_BF16_UNITS.values())}"
    if parameters < LARGE_UNET:
        return torch.float32, f"a UNet of {parameters / 1e6:.1f} million parameters is too small to need bf16"
    return torch.bfloat16, f"the processor has {bf16_unit}"


def choose_vae_dtype(name: str, dtype: torch.dtype, *, force_upcast: bool) -> torch.dtype:
    """Return the VAE's dtype of a setting; `auto` is the other models' dtype, or fp32 for a VAE that overflows in fp16.

    Its config then says `force_upcast`. diffusers converts too, but around every single picture.
    """
    if name == "auto":
        return torch.float32 if dtype == torch.float16 and force_upcast else dtype
    return _DTYPES[name]
